import json
import random

import pytest

from pft_core.evaluation.metrics.metric_rows import report_rows
from pft_core.evaluation.metrics.outcome import Outcome
from tests.builders import SPACE


def one(item_id: str, sides, first, second, free=None, base=None, *, axis="Risk", scenario=None) -> Outcome:
    chosen = (as_choice(first), as_choice(second))
    return Outcome(item_id, scenario or item_id, axis, "one", sides, chosen, as_choice(free), as_choice(base))


def every(item_id: str, sides, first, second) -> Outcome:
    return Outcome(item_id, item_id, "Risk", "all", sides, (as_choice(first), as_choice(second)))


def as_choice(options):
    return None if options is None else frozenset([options] if isinstance(options, int) else options)


# Side of the chosen option under: first pole, second pole, no condition, base without a condition.
ONE = [
    one("a", (0, 1), 0, 1, 0, 0),  # 0 1 0 0: right, right; flips
    one("b", (1, 0), 1, 1, 1, 0),  # 0 0 0 1: right, wrong
    one("c", (0, 1, 1), 1, 0, 2, 1),  # 1 0 1 1: wrong, wrong; flips in the wrong direction
    one("d", (1, 1, 0), None, 0, None, 0),  # - 1 - 1: unparsed, right
]
ALL = [
    every("a", (0, 1, 0), {0, 2}, {1}),  # gold {0, 2} and {1}: 1, 1
    every("b", (1, 1, 0), {0, 1, 2}, {0}),  # gold {2} and {0, 1}: a wrong option gives 0, half of gold 0.5
    every("c", (0, 1), None, {0}),  # gold {0} and {1}: unparsed gives 0, wrong gives 0
]


def rows_of(outcomes, trained_poles=None) -> dict:
    rows = report_rows(outcomes, policy="p", space=SPACE, trained_poles=trained_poles)
    return {(row["metric"], row["pole"]): row for row in rows}


def test_rows_have_exactly_the_reports_keys() -> None:
    keys = ["policy", "axis", "pole", "trained_pole", "metric", "value", "n", "num_scenarios", "low", "high"]
    keys += ["position_baseline", "unparsed"]
    for row in report_rows(ONE + ALL, policy="p", space=SPACE, trained_poles=None):
        assert list(row) == keys
        assert (row["policy"], row["axis"]) == ("p", "Risk")
        assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize(
    ("metric", "pole", "value", "position_baseline", "unparsed"),
    [
        # Baseline: the first option has side 0 in a and c, the second has side 1 in a, c and d; their sides differ
        # except in d.
        ("one", "Bold", 2 / 4, 2 / 4, 1 / 4),  # a, b
        ("one", "Careful", 2 / 4, 3 / 4, 0),  # a, d
        ("both_right", None, 1 / 4, 2 / 4, 1 / 8),  # a; one of 8 replies is unparsed
        ("flip", None, 2 / 4, 3 / 4, 1 / 8),  # a, c; d has only one parsed reply
        ("leak", None, 1 / 4, None, 1 / 4),  # policy: a, b show the first pole; base: a; |2/4 - 1/4|
    ],
)
def test_metrics_of_one(metric, pole, value, position_baseline, unparsed) -> None:
    row = rows_of(ONE)[metric, pole]
    assert (row["value"], row["position_baseline"], row["unparsed"]) == (value, position_baseline, unparsed)
    assert row["n"] == 4
    assert row["low"] <= value <= row["high"]


@pytest.mark.parametrize(
    ("metric", "pole", "value", "position_baseline"),
    [
        # Baseline {0} for the first pole: half of a, wrong in b, all of c. {1} for the second: all, half, all.
        ("all", "Bold", (1 + 0 + 0) / 3, (0.5 + 0 + 1) / 3),
        ("all", "Careful", (1 + 0.5 + 0) / 3, (1 + 0.5 + 1) / 3),
        # First pole: hits 2 + 1 + 0, chosen 2 + 3 + 0, gold 2 + 1 + 1. Baseline: hits 1 + 0 + 1, chosen 3.
        ("precision", "Bold", 3 / 5, 2 / 3),
        ("recall", "Bold", 3 / 4, 2 / 4),
        ("f1", "Bold", 6 / 9, 4 / 7),
        # Second pole: hits 1 + 1 + 0, chosen 1 + 1 + 1, gold 1 + 2 + 1. Baseline: hits 1 + 1 + 1, chosen 3.
        ("precision", "Careful", 2 / 3, 3 / 3),
        ("recall", "Careful", 2 / 4, 3 / 4),
        ("f1", "Careful", 4 / 7, 6 / 7),
    ],
)
def test_metrics_of_all(metric, pole, value, position_baseline) -> None:
    row = rows_of(ALL)[metric, pole]
    assert row["value"] == pytest.approx(value)
    assert row["position_baseline"] == pytest.approx(position_baseline)
    assert row["unparsed"] == (1 / 3 if pole == "Bold" else 0)


def test_leak_is_an_absolute_value() -> None:
    # The base always shows the first pole, the policy never does: 0 - 1 = -1.
    assert rows_of([one("a", (0, 1), 0, 1, 1, 0)])["leak", None]["value"] == 1


def test_only_metrics_of_the_form_asked_have_rows() -> None:
    assert {metric for metric, _ in rows_of(ONE)} == {"one", "both_right", "flip", "leak"}
    assert {metric for metric, _ in rows_of(ALL)} == {"all", "precision", "recall", "f1"}


def test_trained_poles_are_marked_if_known() -> None:
    outcomes = [*ONE, one("e", (0, 1), 0, 1, axis="Pace")]
    rows = report_rows(outcomes, policy="p", space=SPACE, trained_poles={"Risk": {0}})
    trained = {(row["axis"], row["pole"]): row["trained_pole"] for row in rows}
    assert trained == {
        ("Risk", "Bold"): True,
        ("Risk", "Careful"): False,
        ("Risk", None): None,
        ("Pace", "Fast"): False,
        ("Pace", "Slow"): False,
        ("Pace", None): None,
    }
    assert {row["trained_pole"] for row in rows_of(outcomes).values()} == {None}


def test_rows_do_not_depend_on_the_order_of_outcomes() -> None:
    rng = random.Random(0)
    outcomes = [one(f"{i:02}", (0, 1), rng.choice([0, 1, None]), rng.choice([0, 1]), 0, 0) for i in range(50)]
    assert rows_of(rng.sample(outcomes, k=50)) == rows_of(outcomes)


def test_items_of_one_scenario_are_resampled_together() -> None:
    # Both items share a scenario: every resample holds both, so the mean is always 1/2.
    twins = [one("a", (0, 1), 0, 1, scenario="s"), one("b", (0, 1), 1, 1, scenario="s")]
    row = rows_of(twins)["one", "Bold"]
    assert (row["low"], row["value"], row["high"]) == (0.5, 0.5, 0.5)


def test_an_outcome_survives_a_json_round_trip() -> None:
    for outcome in ONE + ALL:
        assert Outcome.from_json(outcome.to_json()) == outcome
