"""The area under a method's curve over what a suite varies: its mean both-right from the smallest value to the largest.

The curve is the trapezoid through the variants' values, at their true distances; the area is divided by their range,
so it is a share. All variants are asked the same items, so it is a weighted mean of each item's answers, and has
intervals and tests as every other metric.
"""

from collections.abc import Sequence

import numpy as np

from pft_core.evaluation import CountTable, count_table
from pipelines.compare.statistics.comparison_rows import MethodOutcomes, compared, paired_seeds, row_of
from pipelines.compare.statistics.row_schema import ComparisonRow, PairedTest, PairHead, RowHead

AREA = "both_right_area"  # the metric that this module computes
MEASURE = "both_right"


def area_rows(found: Sequence[MethodOutcomes], reference: str) -> tuple[list[ComparisonRow], list[PairedTest]]:
    """The rows of every method, and the reference's tests, over the seeds that finished under every variant.

    Empty where fewer than two variants are numbers.
    """
    told = list(dict.fromkeys(f.variant["value"] for f in found if f.variant))
    values = [value for value in told if isinstance(value, int | float)]
    if len(values) < 2 or len(values) < len(told):
        return [], []
    curves = [curve for name in dict.fromkeys(f.method for f in found) if (curve := _curve(found, name, values))]
    rows = [_row(curve) for curve in curves]
    own = next((curve for curve in curves if curve[0].method == reference), None)
    return rows, [t for curve in curves if own and curve is not own for t in _tests(own, curve)]


def _curve(found: Sequence[MethodOutcomes], method: str, values: Sequence[float]) -> list[MethodOutcomes] | None:
    """What a method found, by rising value of the variant; None where a variant has no run, or no seed finished all."""
    by_value = {f.variant["value"]: f for f in found if f.method == method and f.variant}
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
    """Every item's answers, weighted by the trapezoid rule; curve: by rising value of the variant."""
    tables = [count_table([f.by_seed[seed][1] for seed in seeds], MEASURE, axis=None, side=None) for f in curve]
    kept = [t for t in tables if t is not None]
    assert len(kept) == len(tables), "both-right is asked of every item"
    weights = trapezoid_weights([float(f.variant["value"]) for f in curve if f.variant])
    numerators_SN = sum(w * t.numerators_SN for w, t in zip(weights, kept, strict=True))
    return CountTable(np.asarray(numerators_SN), kept[0].denominators_SN, kept[0].scenarios, kept[0].axes)


def trapezoid_weights(values: Sequence[float]) -> list[float]:
    """What each point counts in the area divided by the range; they sum to 1. values: rising."""
    steps = np.diff(values)
    left, right = np.append(steps, 0.0), np.insert(steps, 0, 0.0)
    return [float(w) for w in (left + right) / (2 * (values[-1] - values[0]))]


def _tests(own: Sequence[MethodOutcomes], other: Sequence[MethodOutcomes]) -> list[PairedTest]:
    """Over the seeds that finished everywhere, on both sides."""
    finished = (set(_seeds(own)), set(_seeds(other)))
    pairs = [(a, b) for a, b in paired_seeds(own[0], other[0]) if a in finished[0] and b in finished[1]]
    if not pairs:
        return []
    ours, theirs = area_of(own, [a for a, _ in pairs]), area_of(other, [b for _, b in pairs])
    run_ids = [found.by_seed[seed][0] for a, b in pairs for curve, seed in ((own, a), (other, b)) for found in curve]
    head: PairHead = {
        "run_ids": list(dict.fromkeys(run_ids)),
        "metric": AREA,
        "axis": None,
        "pole": None,
        "variant": None,
        "a": own[0].method,
        "b": other[0].method,
    }
    return compared(ours, theirs, head, items_decide=False)
