"""Outcomes counted: each metric of each seed and item as numerator and denominator, ready for means and intervals.

Every value is a ratio of sums over items, so an interval draws scenarios, for all seeds and both poles together.
"""

# S seeds, N items

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pft_core.data import SIDES, Form
from pft_core.evaluation.significance import interval_over_seeds
from pft_core.evaluation.statistics import ratio
from pft_core.evaluation.tasks import Outcome, both_right, flip, leak, right, subset_score

Counts = tuple[float, float]  # numerator and denominator of one outcome


def unparsed(outcome: Outcome, side: int) -> Counts:
    """The reply under this pole names no option."""
    return float(outcome.chosen[side] is None), 1.0


POLE_MEASURES: dict[str, tuple[Form, Callable[[Outcome, int], Counts]]] = {
    "one": ("one", right),
    "all": ("all", subset_score),
    "unparsed": ("one", unparsed),
}
PAIR_MEASURES: dict[str, Callable[[Outcome], Counts]] = {"both_right": both_right, "flip": flip, "leak": leak}


def measured(metric: str, outcome: Outcome, side: int | None) -> Counts | None:
    """One outcome's counts of a metric, under one pole or (None) over both; None where the metric does not ask it."""
    if metric in PAIR_MEASURES:
        return PAIR_MEASURES[metric](outcome) if outcome.form == "one" else None
    form, measure = POLE_MEASURES[metric]
    if outcome.form != form:
        return None
    counts = [measure(outcome, s) for s in ((side,) if side is not None else SIDES)]
    return sum(n for n, _ in counts), sum(d for _, d in counts)


@dataclass(frozen=True)
class CountTable:
    """Counts of one metric for every seed S and item N, with each item's scenario and axis."""

    numerators_SN: NDArray[np.float64]
    denominators_SN: NDArray[np.float64]
    scenarios: tuple[str, ...]
    axes: tuple[str, ...]
    absolute: bool = False  # whether the size of a ratio counts, and not its sign

    def values(self) -> list[float]:
        """Per seed: the mean over axes of the ratio on each axis."""
        axes_N = np.array(self.axes)
        parts = [axes_N == axis for axis in dict.fromkeys(self.axes)]
        seeds = zip(self.numerators_SN, self.denominators_SN, strict=True)
        return [float(np.mean([ratio(n[part], d[part], absolute=self.absolute) for part in parts])) for n, d in seeds]

    def interval(self) -> tuple[float, float]:
        """The 95 % bootstrap interval of the mean over seeds."""
        return interval_over_seeds(
            self.numerators_SN, self.denominators_SN, self.scenarios, groups=self.axes, absolute=self.absolute
        )


def count_table(
    runs: Sequence[Sequence[Outcome]], metric: str, *, axis: str | None, side: int | None
) -> CountTable | None:
    """Count a metric on one axis or (None) on all; None where no item asks for it."""
    kept = [i for i, o in enumerate(runs[0]) if (axis is None or o.axis == axis) and measured(metric, o, side)]
    if not kept:
        return None
    counts_SN2 = np.array([[measured(metric, run[i], side) for i in kept] for run in runs], dtype=np.float64)
    items = [runs[0][i] for i in kept]
    scenarios, axes = tuple(o.scenario for o in items), tuple(o.axis for o in items)
    return CountTable(counts_SN2[..., 0], counts_SN2[..., 1], scenarios, axes, absolute=metric == "leak")
