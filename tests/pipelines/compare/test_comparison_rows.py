"""Rows and tests of a comparison, from handmade outcomes."""

import pytest

from pft_core.errors import UserError
from pft_core.evaluation.metrics.outcome import Outcome
from pipelines.compare.report_builder import merge_notes
from pipelines.compare.statistics.area import area_rows
from pipelines.compare.statistics.comparison_rows import (
    MethodOutcomes,
    holm_corrected,
    on_common_items,
    rows_of,
    run_rows,
    significance_against,
)
from tests.builders import SPACE


def outcome(number: int, axis: str, first: int, second: int) -> Outcome:
    """Make an outcome with options of sides 0 and 1; `first`, `second`: the options chosen under each pole."""
    return Outcome(
        f"{axis}-{number}", f"s{axis}{number}", axis, "one", (0, 1), (frozenset({first}), frozenset({second})),
        frozenset({0}), frozenset({0}),
    )  # fmt: skip


def run(risk_right: int, pace_right: int) -> list[Outcome]:
    """Make four items per axis, a given number right under both poles; the others always choose the first option."""
    counts = {"Risk": risk_right, "Pace": pace_right}
    return [outcome(n, axis, 0, int(n < right)) for axis, right in counts.items() for n in range(4)]


def method_outcomes(method: str, runs: dict[int, list[Outcome]]) -> MethodOutcomes:
    return MethodOutcomes(
        method, None, {seed: (f"{method}-{seed}", outcomes) for seed, outcomes in runs.items()}, len(runs)
    )


def only(rows, **keys):
    (row,) = [r for r in rows if all(r[k] == v for k, v in keys.items())]
    return row


def test_a_row_is_the_mean_over_seeds_and_the_mean_over_axes() -> None:
    rows = rows_of(method_outcomes("pft", {0: run(4, 2), 1: run(2, 0)}), SPACE, ["one", "both_right"])
    # Risk, second pole: 4 / 4 and 2 / 4; Pace: 2 / 4 and 0.
    assert only(rows, metric="one", axis="Risk", pole="Careful")["mean"] == 0.75
    assert only(rows, metric="one", axis="Pace", pole="Slow")["mean"] == 0.25
    assert only(rows, metric="one", axis="Risk", pole="Bold")["mean"] == 1.0
    # both right: (1 + 0.5) / 2 and (0.5 + 0) / 2: mean 0.5, sd = |0.75 - 0.25| / sqrt 2
    both = only(rows, metric="both_right", axis=None)
    assert both["mean"] == 0.5
    assert both["sd"] == pytest.approx(0.5 / 2**0.5)
    assert (both["n_items"], both["n_seeds"], both["run_ids"]) == (8, 2, ["pft-0", "pft-1"])
    assert both["low"] <= both["mean"] <= both["high"]
    # Always the first option, then the second: right under both poles here, where sides stand in that order.
    assert both["position_baseline"] == 1.0


def test_one_seed_has_no_standard_deviation_and_is_tested_item_by_item() -> None:
    ours, theirs = method_outcomes("pft", {0: run(4, 4)}), method_outcomes("dpo", {0: run(0, 4)})
    assert only(rows_of(ours, SPACE, ["one"]), axis=None)["sd"] is None
    tests = significance_against(ours, [theirs], SPACE)
    # 4 of 8 items differ, all in our favor: 2 * 0.5^4
    assert only(tests, axis=None)["p"] == pytest.approx(0.125)
    assert {t["test"] for t in tests} == {"mcnemar"}


def test_seeds_are_paired_and_a_yardstick_is_held_against_each() -> None:
    ours = method_outcomes("pft", {0: run(4, 4), 1: run(4, 3), 2: run(3, 4)})
    theirs = method_outcomes("dpo", {0: run(2, 2), 1: run(1, 1)})
    yardstick = MethodOutcomes("position", None, {-1: ("", run(1, 1))}, 1, is_yardstick=True)
    tests = significance_against(ours, [theirs, yardstick], SPACE)
    paired = only(tests, b="dpo", metric="both_right", axis=None, test="paired_t")
    # seed 0: 1 - 0.5, seed 1: 0.875 - 0.25
    assert (paired["n"], paired["difference"]) == (2, 0.5625)
    assert only(tests, b="position", metric="both_right", axis=None, test="permutation")["n"] == 3


def test_seeds_that_all_differ_by_the_same_are_tested_item_by_item() -> None:
    ours = method_outcomes("pft", {0: run(4, 4), 1: run(4, 4), 2: run(4, 4)})
    theirs = method_outcomes("dpo", {0: run(2, 0), 1: run(2, 0), 2: run(2, 0)})
    tests = significance_against(ours, [theirs], SPACE)
    # 6 of 8 items differ, all in our favor: 2 * 0.5^6. No spread over seeds, so no t; `one` is not for McNemar.
    assert only(tests, axis=None) == {
        "metric": "both_right", "axis": None, "pole": None, "variant": None, "a": "pft", "b": "dpo", "test": "mcnemar",
        "difference": 0.75, "n": 8, "p": pytest.approx(0.03125),
        "run_ids": ["pft-0", "dpo-0", "pft-1", "dpo-1", "pft-2", "dpo-2"],
    }  # fmt: skip


def test_correction_runs_over_the_tests_of_one_metric_and_single_axes_and_sign_flips_apart() -> None:
    def test(
        kind: str, p: float, *, metric: str = "one", axis: str | None = None, variant: int = 1
    ) -> dict[str, object]:
        return {"test": kind, "metric": metric, "axis": axis, "p": p, "variant": variant}

    tests = [
        test("mcnemar", 0.01), test("paired_t", 0.04), test("mcnemar", 0.03, variant=2), test("permutation", 0.03),
        test("mcnemar", 0.03, axis="Risk"), test("mcnemar", 0.03, metric="both_right"),
    ]  # fmt: skip
    # 3 x 0.01; 2 x 0.03; 0.04, but not below the one before.
    assert [t["p_holm"] for t in holm_corrected(tests)] == pytest.approx([0.03, 0.06, 0.06, 0.03, 0.03, 0.03])


def test_only_items_that_every_run_answered_count_and_the_others_are_named() -> None:
    both = [
        method_outcomes("pft", {0: run(4, 4), 1: run(4, 4)}),
        method_outcomes("dpo", {0: run(4, 4)[1:], 1: run(4, 4)[1:]}),
    ]
    kept, notes = on_common_items(both)
    assert [[len(outcomes) for outcomes in f.runs] for f in kept] == [[7, 7], [7, 7]]
    assert notes == ["1 of 8 questions are too long and not counted in any number: dpo skipped 1."]
    assert on_common_items(both[:1]) == (both[:1], [])
    with pytest.raises(UserError, match="no test item fits every method"):
        on_common_items([method_outcomes("pft", {0: run(4, 4)[:1]}), method_outcomes("dpo", {0: run(4, 4)[1:]})])


def test_yardsticks_have_no_leak_and_always_answer() -> None:
    yardstick = MethodOutcomes("position", None, {-1: ("", run(1, 1))}, 1, is_yardstick=True)
    assert {row["metric"] for row in rows_of(yardstick, SPACE, ["one", "leak", "unparsed"])} == {"one"}


def test_rates_are_means_of_each_runs_median_step() -> None:
    ours = method_outcomes("pft", {0: run(1, 1), 1: run(1, 1)})
    (row,) = run_rows("pairs_per_s", [(ours, [10.0, 14.0]), (method_outcomes("position", {0: run(1, 1)}), [])])
    assert (row["mean"], row["n_seeds"], row["run_ids"]) == (12.0, 2, ["pft-0", "pft-1"])


def curve(method: str, runs: dict[float, dict[int, list[Outcome]]]) -> list[MethodOutcomes]:
    def ran(value: float, by_seed: dict[int, list[Outcome]]) -> MethodOutcomes:
        named = {seed: (f"{method}-{value}-{seed}", outcomes) for seed, outcomes in by_seed.items()}
        return MethodOutcomes(method, {"name": "budget", "value": value}, named, 2)

    return [ran(value, by_seed) for value, by_seed in runs.items()]


def test_the_area_is_the_mean_over_what_varies_at_its_true_distances() -> None:
    none, half, full = run(0, 0), run(2, 2), run(4, 4)
    ours = curve("pft", {30: {0: none, 1: none}, 10: {0: full, 1: half}, 60: {0: full, 1: full}})
    theirs = curve("dpo", {value: {0: none, 1: none} for value in (10, 30, 60)})
    rows, tests = area_rows([*ours, *theirs], "pft")
    # Seed 0: (1 + 0) / 2 * 20 + (0 + 1) / 2 * 30 = 25 of 50; seed 1: 0.25 * 20 + 0.5 * 30 = 20 of 50.
    ours_row = only(rows, method="pft")
    assert ours_row["mean"] == pytest.approx((0.5 + 0.4) / 2)
    assert ours_row["sd"] == pytest.approx(0.1 / 2**0.5)
    assert (ours_row["n_seeds"], len(ours_row["run_ids"]), ours_row["variant"]) == (2, 6, None)
    assert only(tests, test="paired_t")["difference"] == pytest.approx(0.45)


def test_the_area_counts_only_seeds_that_finished_everywhere() -> None:
    ours = curve("pft", {10: {0: run(4, 4), 1: run(0, 0)}, 30: {0: run(4, 4)}})
    rows, _ = area_rows(ours, "pft")
    assert (only(rows, method="pft")["mean"], only(rows, method="pft")["n_seeds"]) == (1.0, 1)
    assert area_rows(ours[:1], "pft") == ([], [])
    words = [
        MethodOutcomes("pft", {"name": "place", "value": v}, {0: ("a", run(1, 1))}, 1) for v in ("before", "after")
    ]
    assert area_rows(words, "pft") == ([], [])


def test_a_note_that_several_methods_share_is_said_once() -> None:
    notes = [("pft", "1 pair was left out."), ("dpo", "1 pair was left out."), ("pft", "1 pair was left out.")]
    notes += [("dpo", "2 pairs were left out."), ("", "General capability was not measured.")]
    assert merge_notes(notes) == [
        "pft, dpo: 1 pair was left out.",
        "dpo: 2 pairs were left out.",
        "General capability was not measured.",
    ]
