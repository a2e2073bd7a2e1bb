"""Significance tests and intervals: values by hand, and comparisons with independent references."""

from collections.abc import Iterator
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pft_core.errors import UserError
from pft_core.evaluation.intervals import interval
from pft_core.evaluation.significance import holm, interval_over_seeds, mcnemar, paired_t, sign_flip

# --- two runs on the same items


def test_mcnemar_counts_only_items_on_which_the_runs_differ() -> None:
    # Only a is right on 5 items, only b on 1, and 5 agree: 2 * P(at most 1 of 6 heads) = 2 * (1 + 6) / 64.
    a = [True] * 5 + [False] * 1 + [True] * 3 + [False] * 2
    b = [False] * 5 + [True] * 1 + [True] * 3 + [False] * 2
    assert mcnemar(a, b) == pytest.approx(14 / 64)
    assert mcnemar(b, a) == pytest.approx(14 / 64)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.7):
        a, b = rng.random(60) < share, rng.random(60) < 0.5
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        assert mcnemar(a, b) == pytest.approx(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def test_mcnemar_finds_nothing_if_the_runs_are_alike() -> None:
    assert mcnemar([True, False], [True, False]) == 1  # no item differs
    assert mcnemar([True, False], [False, True]) == 1  # 2 * P(at most 1 of 2) = 1.5, capped at 1
    assert mcnemar([], []) == 1


# --- differences over seeds


def test_paired_t_by_hand() -> None:
    # Mean 2, sd 1: t = 2 * sqrt(3). With 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2) = 1 - sqrt(12 / 14).
    assert paired_t([1, 2, 3]) == pytest.approx(1 - (12 / 14) ** 0.5)
    assert paired_t([-1, -2, -3]) == pytest.approx(paired_t([1, 2, 3]))


def test_paired_t_is_the_t_test_of_the_differences() -> None:
    for num_seeds in (2, 3, 5, 10):
        differences = np.random.default_rng(num_seeds).normal(0.3, 1, num_seeds)
        assert paired_t(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


def test_equal_differences_have_a_t_test_p_value_of_one() -> None:
    assert paired_t([0.0, 0.0, 0.0]) == 1
    assert paired_t([0.3 - 0.2, 0.4 - 0.3, 0.1]) == 1  # equal except for rounding
    assert paired_t([0.5]) == 1


def test_sign_flips_by_hand() -> None:
    assert sign_flip([1, 2, 3]) == 2 / 8  # only +++ and --- reach 6
    assert sign_flip([1, -2, 4]) == 6 / 8  # the absolute sums are 7, 5, 3 and 1, each twice; the observed one is 3
    assert sign_flip([0.1] * 5) == 2 / 32
    assert sign_flip([0.5]) == 1
    assert sign_flip([0, 0, 0]) == 1
    assert sign_flip([0.3 - 0.2 - 0.1] * 5) == 1  # a rounding error is not a difference


def test_sign_flips_that_reach_the_same_sum_count() -> None:
    # 0.1 + 0.2 - 0.3 is 5.6e-17 in floats but exactly 0, so each of the 8 sums is at least as large as the observed.
    assert sign_flip([0.1, 0.2, -0.3]) == 1


@pytest.mark.parametrize("num_seeds", [2, 5, 9])
def test_sign_flips_are_the_exact_permutation_test(num_seeds: int) -> None:
    differences = np.random.default_rng(num_seeds).normal(0.5, 1, num_seeds)
    want = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(differences) == pytest.approx(want.pvalue)


def test_sixteen_seeds_are_enumerated_and_seventeen_are_drawn() -> None:
    assert sign_flip([1] * 16) == 2 / 2**16
    assert sign_flip([1] * 17) >= 1 / 20_000 > 2 / 2**17
    # 2 of 2^30 flips reach the sum: no random one of 20,000 does, but the observed signs are always one of them.
    assert sign_flip([1] * 30) == 1 / 20_000


def test_random_sign_flips_are_close_to_the_enumerated_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(1).normal(0.2, 1, 12)
    exact = sign_flip(differences)
    monkeypatch.setattr("pft_core.evaluation.significance.MAX_SEEDS_ENUMERATED", 8)
    # The standard error of 20,000 draws is at most sqrt(0.25 / 20,000) = 0.0035.
    assert sign_flip(differences, seed=3) == pytest.approx(exact, abs=0.0105)
    assert sign_flip(differences, seed=3) == sign_flip(differences, seed=3) != exact


# --- many tests


def test_holm_by_hand() -> None:
    # Sorted: 0.005 * 4 = 0.02, 0.01 * 3 = 0.03, 0.03 * 2 = 0.06, and 0.04 * 1 is raised to the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([0.9, 0.8, 0.6]) == [1, 1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def closed_testing(p_values: list[float]) -> list[float]:
    """Return p values by definition: a hypothesis is rejected if Bonferroni rejects every set that contains it."""
    numbers = range(len(p_values))
    sets = [set(s) for size in numbers for s in combinations(numbers, size + 1)]
    bonferroni = [min(1.0, len(s) * min(p_values[i] for i in s)) for s in sets]
    return [max(p for p, s in zip(bonferroni, sets, strict=True) if i in s) for i in numbers]


@given(st.lists(st.floats(0, 1), max_size=5))
def test_holm_is_closed_testing_with_bonferroni(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(closed_testing(p_values))


# --- intervals


def test_one_seed_gives_the_interval_of_its_run() -> None:
    rng = np.random.default_rng(0)
    right, counts, scenarios = rng.integers(3, size=40), np.full(40, 2), [f"s{i // 3}" for i in range(40)]
    assert interval_over_seeds([right], [counts], scenarios, seed=5) == interval(right, counts, scenarios, seed=5)
    assert interval_over_seeds([right - 1], [counts], scenarios, absolute=True) == interval(
        right - 1, counts, scenarios, absolute=True
    )


def test_identical_seeds_give_the_interval_of_one() -> None:
    right = [float(i % 3 == 0) for i in range(30)]
    once = interval_over_seeds([right], [[1] * 30], range(30))
    assert interval_over_seeds([right, right], [[1] * 30] * 2, range(30)) == once


def all_resamples(totals_SC: np.ndarray, *, draw_seeds: bool) -> Iterator[float]:
    """Yield the mean over seeds of every equally likely resample; all denominators are 1."""
    num_seeds, num_clusters = totals_SC.shape
    for clusters in product(range(num_clusters), repeat=num_clusters):
        for seeds in product(range(num_seeds), repeat=num_seeds) if draw_seeds else [range(num_seeds)]:
            yield float(totals_SC[list(seeds)][:, list(clusters)].mean())


@pytest.mark.parametrize("num_seeds", [2, 3])
def test_the_interval_equals_that_of_all_enumerated_resamples(num_seeds: int) -> None:
    # Three scenarios give 27 resamples, and three seeds another 27; two seeds are not resampled. 20,000 draws estimate
    # a share within 0.01, and the enumerated value is the same from 0.09 to 0.11 and from 0.89 to 0.91.
    right_SC = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]], dtype=float)[:num_seeds]
    values = list(all_resamples(right_SC, draw_seeds=num_seeds == 3))
    want, *near = (pytest.approx(tuple(np.quantile(values, [share, 1 - share]))) for share in (0.1, 0.09, 0.11))
    assert all(tuple(other.expected) == want for other in near)
    ones = np.ones_like(right_SC)
    computed = interval_over_seeds(right_SC, ones, "xyz", confidence=0.8, num_resamples=20_000)
    assert computed == want


def test_three_seeds_are_resampled_and_two_are_not() -> None:
    # All items of a seed are equal, so only resampling seeds can change the mean. Of the 27 resamples of three seeds,
    # one has mean 0 and one has mean 1, which is 3.7% each.
    right_SN = np.array([[0.0], [0.5], [1.0]]) * np.ones(4)
    assert interval_over_seeds(right_SN, np.ones((3, 4)), range(4)) == (0, 1)
    assert interval_over_seeds(right_SN[:2], np.ones((2, 4)), range(4)) == (0.25, 0.25)


def test_axes_count_equally_and_resample_their_scenarios_separately() -> None:
    # Each axis has one scenario that is all right and one that is all wrong: its share is 0, 1/2 or 1 with probability
    # 1/4, 1/2 and 1/4. The mean of two independent axes is at most 0 in 1/16, 0.25 in 5/16, 0.5 in 11/16 and 0.75 in
    # 15/16 of the resamples, however many items an axis has. Both axes use the same scenario names.
    right = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    scenarios = ["x"] * 4 + ["y"] * 4 + ["x", "y"]
    axes = ["Risk"] * 8 + ["Pace"] * 2
    for order in (range(10), np.random.default_rng(0).permutation(10)):
        mixed = [[labels[i] for i in order] for labels in (right, scenarios, axes)]
        low, high = interval_over_seeds([mixed[0]], [[1] * 10], mixed[1], groups=mixed[2], confidence=0.7)
        assert (low, high) == (0.25, 0.75)  # the quantiles 0.15 and 0.85


def test_the_absolute_value_is_taken_per_seed() -> None:
    # Two seeds that leak to opposite poles both leak: their differences cancel, but their absolute values do not.
    moved = [[-1.0] * 4, [1.0] * 4]
    assert interval_over_seeds(moved, np.ones((2, 4)), range(4), absolute=True) == (1, 1)
    assert interval_over_seeds(moved, np.ones((2, 4)), range(4)) == (0, 0)


def test_a_zero_denominator_gives_zero() -> None:
    assert interval_over_seeds([[0, 0]], [[0, 0]], "xy") == (0, 0)


def test_the_same_seed_gives_the_same_interval_for_every_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    right_SN = np.random.default_rng(0).integers(2, size=(3, 40))

    def interval_of(seed: int) -> tuple[float, float]:
        return interval_over_seeds(right_SN, np.ones((3, 40)), range(40), groups=[i % 2 for i in range(40)], seed=seed)

    whole = interval_of(3)
    monkeypatch.setattr("pft_core.evaluation.significance._DRAWS_AT_ONCE", 64)
    assert interval_of(3) == whole != interval_of(4)


@pytest.mark.parametrize(
    ("scenarios", "axes", "message"),
    [
        (["x", "x", "x"], None, r"there is 1 \(items: 3\)"),
        ([], None, r"there is 0 \(items: 0\)"),
        (
            ["x", "y", "x"],
            ["Risk", "Risk", "Pace"],
            r"'Pace': an interval needs at least 2 scenarios, but there is 1 \(items: 1\)",
        ),
    ],
)
def test_one_scenario_is_too_few_for_an_interval(scenarios: list[str], axes: list[str] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        interval_over_seeds([[1.0] * len(scenarios)], [[1.0] * len(scenarios)], scenarios, groups=axes)
