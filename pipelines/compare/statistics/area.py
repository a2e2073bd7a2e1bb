"""The area under a method's curve over the variants: its mean both right from the smallest value to the largest.

The trapezoid rule joins the variants' values at their true distances; the area is divided by their range, so it is a
share. All variants answer the same items, so the area is a weighted mean of each item's answers, with intervals and
tests like any other metric.
"""

from collections.abc import Sequence

import numpy as np

from pft_core.evaluation import CountTable, count_table
from pipelines.compare.statistics.comparison_rows import MethodOutcomes, paired_seeds, paired_tests, row_of
from pipelines.compare.statistics.row_schema import ComparisonRow, PairedTest, PairHead, RowHead

AREA = "both_right_area"  # the metric that this module computes
MEASURE = "both_right"


def area_rows(outcomes: Sequence[MethodOutcomes], reference: str) -> tuple[list[ComparisonRow], list[PairedTest]]:
    """Return the rows of every method and the reference's tests, over the seeds that finished under every variant.

    Empty if a variant is not a number, or if there is only one.
    """
    variants = list(dict.fromkeys(f.variant["value"] for f in outcomes if f.variant))
    values = [value for value in variants if isinstance(value, int | float)]
    if len(values) < 2 or len(values) < len(variants):
        return [], []
    curves = [curve for name in dict.fromkeys(f.method for f in outcomes) if (curve := _curve(outcomes, name, values))]
    rows = [_row(curve) for curve in curves]
    own = next((curve for curve in curves if curve[0].method == reference), None)
    return rows, [t for curve in curves if own and curve is not own for t in _tests(own, curve)]


def _curve(outcomes: Sequence[MethodOutcomes], method: str, values: Sequence[float]) -> list[MethodOutcomes] | None:
    """Return a method's outcomes by rising variant; None if a variant has no run, or no seed finished them all."""
    by_value = {f.variant["value"]: f for f in outcomes if f.method == method and f.variant}
    curve = [by_value[value] for value in sorted(values) if value in by_value]
    return curve if len(curve) == len(values) and _seeds(curve) else None


def _seeds(curve: Sequence[MethodOutcomes]) -> list[int]:
    return [seed for seed in curve[0].by_seed if all(seed in f.by_seed for f in curve)]


def _row(curve: Sequence[MethodOutcomes]) -> ComparisonRow:
    seeds = _seeds(curve)
    run_ids = [f.by_seed[seed][0] for f in curve for seed in seeds]
    head: RowHead = {
        "method": curve[0].method,
        "variant": None,
        "run_ids": run_ids,
        "axis": None,
        "pole": None,
        "metric": AREA,
        "position_baseline": None,
    }
    return row_of(area_of(curve, seeds), head)


def area_of(curve: Sequence[MethodOutcomes], seeds: Sequence[int]) -> CountTable:
    """Weight every item's answers by the trapezoid rule. curve: by rising value of the variant."""
    tables = [count_table([f.by_seed[seed][1] for seed in seeds], MEASURE, axis=None, side=None) for f in curve]
    present = [t for t in tables if t is not None]
    assert len(present) == len(tables), "both right is measured on every item"
    weights = trapezoid_weights([float(f.variant["value"]) for f in curve if f.variant])
    numerators_SN = sum(w * t.numerators_SN for w, t in zip(weights, present, strict=True))
    return CountTable(np.asarray(numerators_SN), present[0].denominators_SN, present[0].scenarios, present[0].axes)


def trapezoid_weights(values: Sequence[float]) -> list[float]:
    """Return the weight of each point in the area divided by the range; weights sum to 1. values: rising."""
    steps = np.diff(values)
    left, right = np.append(steps, 0.0), np.insert(steps, 0, 0.0)
    return [float(w) for w in (left + right) / (2 * (values[-1] - values[0]))]


def _tests(own: Sequence[MethodOutcomes], other: Sequence[MethodOutcomes]) -> list[PairedTest]:
    """Test two curves over the seeds that finished under every variant of both."""
    finished = (set(_seeds(own)), set(_seeds(other)))
    pairs = [(a, b) for a, b in paired_seeds(own[0], other[0]) if a in finished[0] and b in finished[1]]
    if not pairs:
        return []
    ours, theirs = area_of(own, [a for a, _ in pairs]), area_of(other, [b for _, b in pairs])
    run_ids = [point.by_seed[seed][0] for a, b in pairs for curve, seed in ((own, a), (other, b)) for point in curve]
    head: PairHead = {
        "run_ids": list(dict.fromkeys(run_ids)),
        "metric": AREA,
        "axis": None,
        "pole": None,
        "variant": None,
        "a": own[0].method,
        "b": other[0].method,
    }
    return paired_tests(ours, theirs, head, items_decide=False)
