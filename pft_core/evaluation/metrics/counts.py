"""Counts of outcomes: a numerator and a denominator for each metric, seed and item, ready for means and intervals.

Every value is a ratio of sums over items. Intervals resample scenarios, for all seeds and both poles together.
"""

# S seeds, N items

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pft_core.data import SIDES
from pft_core.evaluation.intervals import ratio
from pft_core.evaluation.metrics.measures import Counts
from pft_core.evaluation.metrics.measuring import counts_of
from pft_core.evaluation.metrics.outcome import Outcome
from pft_core.evaluation.metrics.registry import METRICS
from pft_core.evaluation.significance import interval_over_seeds


def outcome_counts(name: str, outcome: Outcome, side: int | None) -> Counts | None:
    """Return one outcome's counts of a metric for one side, or over both if side is None. Returns None if the outcome's
    form is not the metric's."""
    metric = METRICS[name]
    if outcome.form != metric.form:
        return None
    if not metric.has_poles:
        return counts_of(name, outcome)
    counts = [counts_of(name, outcome, s) for s in ((side,) if side is not None else SIDES)]
    return sum(n for n, _ in counts), sum(d for _, d in counts)


@dataclass(frozen=True)
class CountTable:
    """Counts of one metric for every seed S and item N, with each item's scenario and axis."""

    numerators_SN: NDArray[np.float64]
    denominators_SN: NDArray[np.float64]
    scenarios: tuple[str, ...]
    axes: tuple[str, ...]
    absolute: bool = False  # whether the value is the ratio's absolute value

    def values(self) -> list[float]:
        """Return for each seed the mean over axes of the ratio on each axis."""
        axes_N = np.array(self.axes)
        parts = [axes_N == axis for axis in dict.fromkeys(self.axes)]
        seeds = zip(self.numerators_SN, self.denominators_SN, strict=True)
        return [float(np.mean([ratio(n[part], d[part], absolute=self.absolute) for part in parts])) for n, d in seeds]

    def interval(self) -> tuple[float, float]:
        """Return the 95% bootstrap interval of the mean over seeds."""
        return interval_over_seeds(
            self.numerators_SN, self.denominators_SN, self.scenarios, groups=self.axes, absolute=self.absolute
        )


def count_table(
    runs: Sequence[Sequence[Outcome]], metric: str, *, axis: str | None, side: int | None
) -> CountTable | None:
    """Count a metric on one axis, or on all if axis is None. Returns None if no item has the metric's form."""
    kept = [i for i, o in enumerate(runs[0]) if (axis is None or o.axis == axis) and outcome_counts(metric, o, side)]
    if not kept:
        return None
    counts_SN2 = np.array([[outcome_counts(metric, run[i], side) for i in kept] for run in runs], dtype=np.float64)
    items = [runs[0][i] for i in kept]
    scenarios, axes = tuple(o.scenario for o in items), tuple(o.axis for o in items)
    return CountTable(counts_SN2[..., 0], counts_SN2[..., 1], scenarios, axes, absolute=METRICS[metric].is_size)
