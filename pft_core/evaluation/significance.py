"""Statistics to compare methods: paired tests, Holm's correction, and intervals over seeds and scenarios."""

# S seeds, N items, C clusters, R resamples, M tests

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from pft_core.errors import UserError

MAX_SEEDS_ENUMERATED = 16  # 65,536 sign flips
MIN_SEEDS_RESAMPLED = 3

_DRAWS_AT_ONCE = 1 << 21  # resamples x clusters held in memory
_SIGNS_DRAWN = 20_000
_ROUNDING = 1e-9  # accuracies that differ by no more count as equal


def mcnemar(a_right: ArrayLike, b_right: ArrayLike) -> float:
    """Return the two-sided p value of the exact McNemar test for two runs on the same items, right or not [N].

    The null hypothesis: on items that exactly one run gets right, either run is equally likely to be right, which is a
    binomial with probability 1/2 (McNemar 1947). Without such items p is 1.
    """
    a_N, b_N = np.asarray(a_right, dtype=bool), np.asarray(b_right, dtype=bool)
    assert a_N.shape == b_N.shape, "both runs must have answered the same items"
    only_a, only_b = int(np.sum(a_N & ~b_N)), int(np.sum(b_N & ~a_N))
    return min(1.0, 2 * float(stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))


def paired_t(differences_S: ArrayLike) -> float:
    """Return the two-sided p value of the paired t test that the mean difference over seeds is 0.

    p is 1 for a single seed and for equal differences, since t is undefined without a spread.
    """
    d_S = np.asarray(differences_S, dtype=float)
    if np.allclose(d_S, d_S[0], rtol=_ROUNDING, atol=_ROUNDING):
        return 1.0
    t = d_S.mean() / (d_S.std(ddof=1) / np.sqrt(len(d_S)))
    return float(2 * stats.t.sf(abs(t), df=len(d_S) - 1))


def sign_flip(differences_S: ArrayLike, *, seed: int = 0) -> float:
    """Return the two-sided p value of the sign-flip permutation test of paired differences over seeds: the share of
    sign assignments whose mean is at least as large. It is at least 2 / 2^S, so 5 seeds cannot reach 0.05, but 6 can.

    The test is exact for up to 16 seeds. For more it takes 20,000 random draws and counts the observed signs as one of
    them, so p is never 0 (Phipson & Smyth 2010).
    """
    d_S = np.asarray(differences_S, dtype=float)
    num_seeds = len(d_S)
    if num_seeds <= MAX_SEEDS_ENUMERATED:
        bits_RS = np.arange(2**num_seeds)[:, None] >> np.arange(num_seeds) & 1
    else:
        bits_RS = np.random.default_rng(seed).integers(2, size=(_SIGNS_DRAWN, num_seeds))
        bits_RS[0] = 1
    sums_R = np.abs((2 * bits_RS - 1) @ d_S)
    # Equal sums may differ by rounding, depending on the order of addition.
    return float(np.mean(sums_R >= abs(d_S.sum()) - _ROUNDING * max(1.0, np.abs(d_S).sum())))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values [M] adjusted for multiple testing, in input order (Holm 1979).

    The k-th smallest p value is multiplied by M - k + 1. An adjusted value is at most 1, and at least the adjusted
    value of every smaller p value.
    """
    p_M = np.asarray(p_values, dtype=float)
    order_M = np.argsort(p_M, kind="stable")
    adjusted_M = np.empty_like(p_M)
    adjusted_M[order_M] = np.minimum(1.0, np.maximum.accumulate(p_M[order_M] * np.arange(len(p_M), 0, -1)))
    return [float(p) for p in adjusted_M]


def interval_over_seeds(
    numerators_SN: ArrayLike,
    denominators_SN: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    groups: Sequence[Hashable] | None = None,
    absolute: bool = False,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval (low, high) of the mean over seeds and groups (axes) of
    `statistics.ratio`.

    Clusters [N] are resampled with replacement within each group [N] (None: one group), and all seeds share the
    resamples, because they answered the same items. With 3 seeds or more, seeds are resampled too, and the interval is
    one for the method rather than for these runs. One or two seeds cannot show how much seeds differ, so their interval
    covers items only. Resampling both counts the interaction of seed and scenario twice, which widens the interval
    (Owen 2007). But few seeds hide part of their spread: if seeds differ far more than scenarios, 3 of them give too
    narrow an interval. The same seed and order of items give the same interval. Raises UserError if a group has fewer
    than two clusters.
    """
    numerators, denominators = np.asarray(numerators_SN, dtype=float), np.asarray(denominators_SN, dtype=float)
    generator = np.random.default_rng(seed)
    groups = [None] * len(clusters) if groups is None else groups
    groups_N = _numbered(groups)
    ratios_RS = np.zeros((num_resamples, len(numerators)))
    names = list(dict.fromkeys(groups)) or [None]
    for number, name in enumerate(names):
        items = np.flatnonzero(groups_N == number)
        clusters_N = _numbered([clusters[int(i)] for i in items])
        _refuse_lone_cluster(clusters_N, name)
        totals_2SC = [_cluster_totals(counts[:, items], clusters_N) for counts in (numerators, denominators)]
        resampled_RS = _resampled_ratios(totals_2SC, generator, num_resamples)
        ratios_RS += (np.abs(resampled_RS) if absolute else resampled_RS) / len(names)
    tail = (1 - confidence) / 2
    low, high = np.quantile(_means_of_seeds(ratios_RS, generator), [tail, 1 - tail])
    return float(low), float(high)


def _refuse_lone_cluster(clusters_N: NDArray[np.int64], group: Hashable) -> None:
    if (num_clusters := len(np.unique(clusters_N))) < 2:
        where = "" if group is None else f"{group!r}: "
        raise UserError(
            f"{where}an interval needs at least 2 scenarios, but there is {num_clusters} (items: {len(clusters_N)}): "
            "test on more data"
        )


def _numbered(labels: Sequence[Hashable]) -> NDArray[np.int64]:
    """Number labels by first appearance."""
    position = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return np.fromiter((position[label] for label in labels), dtype=np.int64, count=len(labels))


def _cluster_totals(counts_SN: NDArray[np.float64], clusters_N: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.stack([np.bincount(clusters_N, weights=counts_N) for counts_N in counts_SN])


def _resampled_ratios(
    totals_2SC: Sequence[NDArray[np.float64]], generator: np.random.Generator, num_resamples: int
) -> NDArray[np.float64]:
    """Resample clusters, and return each seed's ratio of sums [R, S]; 0 if the denominators are all 0."""
    num_clusters = totals_2SC[0].shape[1]
    chunk = max(1, _DRAWS_AT_ONCE // num_clusters)
    parts = []
    for start in range(0, num_resamples, chunk):
        drawn = generator.integers(num_clusters, size=(min(chunk, num_resamples - start), num_clusters))
        times_RC = _times_drawn(drawn)
        numerators, denominators = (times_RC @ totals_SC.T for totals_SC in totals_2SC)
        parts.append(np.divide(numerators, denominators, out=np.zeros_like(numerators), where=denominators > 0))
    return np.concatenate(parts)


def _times_drawn(drawn_RC: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how often each cluster was drawn in each resample [R, C]."""
    rows, width = drawn_RC.shape
    places = drawn_RC + width * np.arange(rows)[:, None]
    return np.bincount(places.ravel(), minlength=rows * width).reshape(rows, width).astype(float)


def _means_of_seeds(ratios_RS: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    num_seeds = ratios_RS.shape[1]
    if num_seeds >= MIN_SEEDS_RESAMPLED:
        ratios_RS = np.take_along_axis(ratios_RS, generator.integers(num_seeds, size=ratios_RS.shape), axis=1)
    means_R: NDArray[np.float64] = ratios_RS.mean(axis=1)
    return means_R
