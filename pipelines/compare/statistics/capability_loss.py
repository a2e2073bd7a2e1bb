"""Rows of general capability: after training, and the drop that training caused."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pft_core.evaluation import CapabilityAnswer, drop, losses, mean_with_interval, position_baseline, scores
from pipelines.compare.statistics.row_schema import ComparisonRow, VariantValue


def capability_rows(
    method: str,
    variant: VariantValue | None,
    *,
    before: Sequence[CapabilityAnswer] | None,
    by_seed: Mapping[int, tuple[str, Sequence[CapabilityAnswer]]],
) -> list[ComparisonRow]:
    """Return the rows `capability` and, if the method was trained (before is not None), `capability_drop`.

    The drop is before minus after, so a positive one is a loss. by_seed: run id and answers per finished seed.
    Raises UserError if runs answered different items.
    """
    runs = [answers for _, answers in by_seed.values()]
    values_SN, ids = scores(runs), [a.item_id for a in runs[0]]
    row = partial(_row, method, variant, [run_id for run_id, _ in by_seed.values()])
    rows = [row("capability", values_SN, mean_with_interval(values_SN, ids), position_baseline(runs[0]))]
    if before is not None:
        rows.append(row("capability_drop", losses(before, runs), drop(before, runs), None))
    return rows


def _row(
    method: str,
    variant: VariantValue | None,
    run_ids: Sequence[str],
    metric: str,
    values_SN: NDArray[np.float64],
    mean_and_interval: tuple[float, float, float],
    baseline: float | None,
) -> ComparisonRow:
    by_seed = values_SN.mean(axis=1)
    mean, low, high = mean_and_interval
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
