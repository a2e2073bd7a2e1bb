"""The rows of general capability: after a training, and what was lost by it."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pft_core.evaluation import CapabilityAnswer, drop, losses, mean_with_interval, position_baseline, scores
from pipelines.compare.statistics.row_schema import ComparisonRow, VariedKnob


def capability_rows(
    method: str,
    variant: VariedKnob | None,
    *,
    before: Sequence[CapabilityAnswer] | None,
    by_seed: Mapping[int, tuple[str, Sequence[CapabilityAnswer]]],
) -> list[ComparisonRow]:
    """The rows `capability` and, where the method was trained (before is not None), `capability_drop`: before minus
    after, so that a positive one is a loss.

    by_seed: per finished seed its run id and answers. Raises UserError where runs answered other items.
    """
    runs = [answered for _, answered in by_seed.values()]
    values_SN, ids = scores(runs), [a.item_id for a in runs[0]]
    row = partial(_row, method, variant, [run_id for run_id, _ in by_seed.values()])
    rows = [row("capability", values_SN, mean_with_interval(values_SN, ids), position_baseline(runs[0]))]
    if before is not None:
        rows.append(row("capability_drop", losses(before, runs), drop(before, runs), None))
    return rows


def _row(
    method: str,
    variant: VariedKnob | None,
    run_ids: Sequence[str],
    metric: str,
    values_SN: NDArray[np.float64],
    found: tuple[float, float, float],
    baseline: float | None,
) -> ComparisonRow:
    by_seed = values_SN.mean(axis=1)
    mean, low, high = found
    return {
        "method": method,
        "axis": None,
        "pole": None,
        "metric": metric,
        "mean": mean,
        "sd": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
        "low": low,
        "high": high,
        "n_items": values_SN.shape[1],
        "n_seeds": len(by_seed),
        "run_ids": list(run_ids),
        "position_baseline": baseline,
        "variant": variant,
    }
