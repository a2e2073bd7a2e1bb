"""Call a metric's code and check the result: the code may be a user's own, so errors name the metric."""

from collections.abc import Mapping
from typing import Any

from pft_core.errors import UserError
from pft_core.evaluation.metrics.measures import Counts
from pft_core.evaluation.metrics.outcome import Outcome
from pft_core.evaluation.metrics.registry import METRICS
from pft_core.registry import call

LARGEST = 1e100  # sums of such numbers, and their squares, are still finite


def counts_of(name: str, outcome: Outcome, *side: int) -> Counts:
    """Return one outcome's numerator and denominator. Raises UserError if the code fails or returns anything else."""
    what = f"metric {name!r}, item {outcome.item_id!r}"
    returned = call(METRICS[name].code, outcome, *side, what=what)
    try:
        numerator, denominator = map(finite, returned)
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{what}: the measure returned {returned!r}: return a numerator and a denominator, both finite "
            "(0 and 0 if there is nothing to count)"
        ) from None
    return numerator, denominator


def value_of_run(name: str, result: Mapping[str, Any]) -> float | None:
    """Return a metric's value for a run's result. Raises UserError if the code fails or returns no finite number."""
    what = f"metric {name!r}, run {result.get('run_id')}"
    returned = call(METRICS[name].code, result, what=what)
    try:
        return None if returned is None else finite(returned)
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{what}: the measure returned {returned!r}: return a finite number, or None if there is nothing to measure"
        ) from None


def finite(number: Any) -> float:
    """Return a number as a float. Raises ValueError or TypeError if it is no number, not finite, or above `LARGEST`."""
    if not abs(value := float(number)) <= LARGEST:  # catches nan too
        raise ValueError(f"{value} is not finite, or larger than {LARGEST:g}")
    return value
