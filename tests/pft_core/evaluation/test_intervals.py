from itertools import product

import numpy as np
import pytest

from pft_core.evaluation.intervals import interval, ratio


def test_a_ratio_is_a_ratio_of_sums_not_a_mean_of_ratios() -> None:
    # (1 + 1) / (1 + 3) = 0.5, while the mean of 1/1 and 1/3 is 0.67.
    assert ratio([1, 1], [1, 3]) == 0.5
    assert ratio([-1, 0], [1, 1]) == -0.5
    assert ratio([-1, 0], [1, 1], absolute=True) == 0.5
    assert ratio([0.5], [1]) == 0.5
    assert ratio([0, 0], [0, 0]) == 0


def test_the_interval_equals_that_of_all_enumerated_resamples() -> None:
    # Three clusters with totals 2/2, 1/2, 0/1 have 27 equally likely resamples. The quantiles 0.2 and 0.8 lie within
    # runs of equal ratios (positions 5-7 and 21-23 of 27), which 4,000 draws do not miss.
    totals = [(2, 2), (1, 2), (0, 1)]
    resamples = [[totals[i] for i in draw] for draw in product(range(3), repeat=3)]
    ratios = sorted(sum(n for n, _ in r) / sum(d for _, d in r) for r in resamples)
    want = (ratios[5], ratios[21])  # 0.2 x 27 = 5.4, 0.8 x 27 = 21.6
    low, high = interval([1, 1, 1, 0, 0], [1] * 5, ["x", "x", "y", "y", "z"], confidence=0.6, num_resamples=4000)
    assert (low, high) == pytest.approx(want)


def test_items_of_a_cluster_are_drawn_together() -> None:
    # 100 items in clusters of 2 equal values carry the information of 50, so the interval is sqrt(2) times as wide.
    values = [float(i % 4 < 2) for i in range(100)]
    pairs = [i // 2 for i in range(100)]
    apart = np.ptp(interval(values, [1] * 100, range(100)))
    together = np.ptp(interval(values, [1] * 100, pairs))
    assert together / apart == pytest.approx(2**0.5, rel=0.1)


def test_the_interval_covers_the_normal_one_for_a_large_sample() -> None:
    # p = 0.3, n = 1000: 0.3 +- 1.96 sqrt(0.3 * 0.7 / 1000) = 0.3 +- 0.0284.
    values = [float(i % 10 < 3) for i in range(1000)]
    assert interval(values, [1] * 1000, range(1000)) == pytest.approx((0.2716, 0.3284), abs=0.003)


def test_the_same_seed_gives_the_same_interval_for_every_chunk_size(monkeypatch) -> None:
    values, ones = [0.0, 1.0, 1.0, 0.0, 1.0], [1.0] * 5
    whole = interval(values, ones, range(5), seed=3)
    monkeypatch.setattr("pft_core.evaluation.intervals._DRAWS_AT_ONCE", 64)
    assert interval(values, ones, range(5), seed=3) == whole


def test_an_absolute_ratio_has_an_interval_of_absolute_values() -> None:
    # Differences -1 and 0: resampled means are -1, -0.5 and 0, so their absolute values lie between 0 and 1.
    assert interval([-1, 0], [1, 1], range(2), absolute=True) == (0, 1)
