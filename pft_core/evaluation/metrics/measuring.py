"""What a metric's code gives, checked: it may be a user's own, so what is wrong with it is said by its name."""

from collections.abc import Mapping
from typing import Any

from pft_core.errors import UserError
from pft_core.evaluation.metrics.measures import Counts
from pft_core.evaluation.metrics.outcome import Outcome
from pft_core.evaluation.metrics.registry import METRICS
from pft_core.registry import call

LARGEST = 1e100  # sums of such numbers, and their squares, are finite still


def counts_of(name: str, outcome: Outcome, *side: int) -> Counts:
    """One outcome's numerator and denominator. Raises UserError where the code fails, or gives other than those."""
    what = f"metric {name!r}, item {outcome.item_id!r}"
    given = call(METRICS[name].code, outcome, *side, what=what)
    try:
        numerator, denominator = map(finite, given)
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{what}: its measure gives {given!r}: give a numerator and a denominator, both finite "
            "(0 and 0 where there is nothing to count)"
        ) from None
    return numerator, denominator


def value_of_run(name: str, result: Mapping[str, Any]) -> float | None:
    """What a metric measures of a run's result. Raises UserError where the code fails, or gives no finite number."""
    what = f"metric {name!r}, run {result.get('run_id')}"
    given = call(METRICS[name].code, result, what=what)
    try:
        return None if given is None else finite(given)
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{what}: its measure gives {given!r}: give a finite number, or None where there is nothing to measure"
        ) from None


def finite(given: Any) -> float:
    """Return a number. Raises ValueError or TypeError where it is none, not finite, or all but infinite."""
    if not abs(value := float(given)) <= LARGEST:  # nan is not either
        raise ValueError(f"{value} is not finite, or larger than {LARGEST:g}")
    return value
