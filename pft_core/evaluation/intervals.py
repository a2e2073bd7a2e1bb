"""Bootstrap intervals over clusters: items of one scenario are drawn together."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

_DRAWS_AT_ONCE = 1 << 21  # resamples x clusters held in memory


def ratio(numerators: Sequence[float], denominators: Sequence[float], *, absolute: bool = False) -> float:
    """Return sum / sum, or 0 if the denominators are all 0; with denominators of 1 it is the mean. absolute: return its
    absolute value."""
    return float(_ratio(np.sum(numerators), np.sum(denominators), absolute))


def interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    absolute: bool = False,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval (low, high) of `ratio` [N] with clusters drawn with replacement
    (Efron & Tibshirani 1993, ch. 13).

    The same seed and the same order of clusters give the same interval.
    """
    totals_C2 = _cluster_totals(numerators, denominators, clusters)
    num_clusters = len(totals_C2)
    generator = np.random.default_rng(seed)
    values = []
    chunk = max(1, _DRAWS_AT_ONCE // num_clusters)
    for start in range(0, num_resamples, chunk):
        drawn = generator.integers(num_clusters, size=(min(chunk, num_resamples - start), num_clusters))
        values.append(_ratio(totals_C2[drawn, 0].sum(axis=1), totals_C2[drawn, 1].sum(axis=1), absolute))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(values), [tail, 1 - tail])
    return float(low), float(high)


def _cluster_totals(
    numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[Hashable]
) -> NDArray[np.float64]:
    position = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    row_N = np.fromiter((position[c] for c in clusters), dtype=np.int64, count=len(clusters))
    columns = [np.bincount(row_N, weights=np.asarray(w, dtype=float)) for w in (numerators, denominators)]
    return np.stack(columns, axis=1)


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64], absolute: bool) -> NDArray[np.float64]:
    value: NDArray[np.float64] = np.divide(
        numerator, denominator, out=np.zeros_like(numerator, dtype=float), where=denominator > 0
    )
    return np.abs(value) if absolute else value
