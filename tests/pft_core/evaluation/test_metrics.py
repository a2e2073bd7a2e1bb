"""Metrics by name: what the shipped ones say of themselves, and one that comes from outside."""

import pytest

from pft_core.errors import UserError
from pft_core.evaluation.metrics.counts import count_table
from pft_core.evaluation.metrics.metric import Metric
from pft_core.evaluation.metrics.metric_rows import report_rows
from pft_core.evaluation.metrics.outcome import Outcome, always_by_position
from pft_core.evaluation.metrics.registry import METRICS, metrics_where, pairs_first
from tests.builders import SPACE


def outcome(number: int, first: int | None, second: int | None, *, form="one") -> Outcome:
    """Options show sides 0, 1; `first` and `second` are the options chosen under either pole."""
    chosen = tuple(None if option is None else frozenset({option}) for option in (first, second))
    return Outcome(f"i{number}", f"s{number}", "Risk", form, (0, 1), chosen, frozenset({0}), frozenset({1}))


def takes_first(outcome: Outcome, side: int) -> tuple[float, float]:
    return float(outcome.chosen[side] == frozenset({0})), 1.0


def same_choice(outcome: Outcome) -> tuple[float, float]:
    return float(outcome.chosen[0] == outcome.chosen[1]), 1.0


@pytest.fixture
def own_metrics(monkeypatch) -> None:
    """Two metrics as a user's file registers them; gone after the test."""
    monkeypatch.setattr(METRICS, "_entries", {name: METRICS[name] for name in METRICS})
    METRICS.add("takes_first", Metric("Takes first", "the first option is chosen", "pole", takes_first))
    METRICS.add("same", Metric("Same", "one choice under both", "pair", f"{__name__}:same_choice", form="all"))


OUTCOMES = [outcome(0, 0, 1), outcome(1, 0, 0), outcome(2, 1, None), outcome(3, 1, 1)]


def rows_of(outcomes: list[Outcome]) -> dict:
    rows = report_rows(outcomes, policy="p", space=SPACE, trained_poles=None)
    return {(row["metric"], row["pole"]): row for row in rows}


def test_a_metric_from_outside_has_rows_beside_the_shipped_ones(own_metrics) -> None:
    rows = rows_of(OUTCOMES)
    # Chosen first: of four items two under the first pole, one under the second.
    first, second = rows["takes_first", "Bold"], rows["takes_first", "Careful"]
    assert (first["value"], second["value"], first["n"]) == (2 / 4, 1 / 4, 4)
    # Position alone takes the first option for the first pole, the second for the second.
    assert (first["position_baseline"], second["position_baseline"]) == (1.0, 0.0)
    assert (first["unparsed"], second["unparsed"]) == (0.0, 1 / 4)
    assert first["low"] <= first["value"] <= first["high"]
    assert {key for key in rows if key[0] == "one"} == {("one", "Bold"), ("one", "Careful")}
    assert all(metric != "same" for metric, _ in rows), "it is of the other form"


def test_a_metric_of_pairs_may_be_of_any_form_and_name_its_code(own_metrics) -> None:
    rows = rows_of([outcome(0, 0, 0, form="all"), outcome(1, 0, 1, form="all")])
    assert rows["same", None]["value"] == 1 / 2
    assert rows["same", None]["position_baseline"] == 0.0


def test_a_metric_from_outside_is_counted_over_seeds(own_metrics) -> None:
    runs = [OUTCOMES, [outcome(n, 0, 0) for n in range(4)]]
    table = count_table(runs, "takes_first", axis=None, side=None)
    assert table is not None
    assert table.values() == [3 / 8, 1.0]


def test_a_name_is_given_once_and_a_wrong_one_is_told_the_nearest(own_metrics) -> None:
    with pytest.raises(UserError, match="metric 'same' is registered already"):
        METRICS.add("same", METRICS["one"])
    with pytest.raises(UserError, match="Did you mean 'takes_first'"):
        METRICS["take_first"]


def test_what_leads_a_report_is_what_says_that_it_is_right() -> None:
    assert metrics_where(is_right=True) == ["one", "all", "both_right"]
    assert pairs_first(metrics_where(is_right=True)) == ["both_right", "one", "all"]
    assert metrics_where(is_right=True, has_poles=True) == ["one", "all"]


def test_only_leak_needs_the_base() -> None:
    assert metrics_where(needs_base=True) == ["leak"]
    assert metrics_where(has_baseline=False) == ["leak", "unparsed"]


def fails(outcome: Outcome, side: int) -> tuple[float, float]:
    return 1 / side, 1.0


WRONG = [
    (fails, r"test_metrics\.py, line \d+: ZeroDivisionError: division by zero"),
    (lambda outcome, side: (float("nan"), 1.0), r"its measure gives \(nan, 1\.0\): give a numerator"),
    (lambda outcome, side: (1.0, float("inf")), r"gives \(1\.0, inf\).*both finite"),
    (lambda outcome, side: (1e308, 1.0), r"gives \(1e\+308, 1\.0\)"),  # the sum of two is infinite
    (lambda outcome, side: 0.5, r"gives 0\.5: give a numerator and a denominator"),
    (lambda outcome, side: None, r"gives None: .*\(0 and 0 where there is nothing to count\)"),
]


@pytest.mark.parametrize(("measure", "message"), WRONG)
def test_a_measure_that_fails_or_gives_no_two_finite_numbers_is_named(own_metrics, measure, message) -> None:
    METRICS.add("broken", Metric("Broken", "broken", "pole", measure))
    with pytest.raises(UserError, match=rf"^policy p: metric 'broken', item 'i0': .*{message}"):
        rows_of(OUTCOMES)
    with pytest.raises(UserError, match=rf"^metric 'broken', item 'i0': .*{message}"):
        count_table([OUTCOMES], "broken", axis=None, side=None)


def test_a_measure_is_not_asked_what_position_would_choose_where_it_has_no_baseline(own_metrics) -> None:
    def never_by_position(outcome: Outcome) -> tuple[float, float]:
        return 1.0 / (outcome.chosen != always_by_position(outcome).chosen), 1.0

    METRICS.add("own", Metric("Own", "own", "pair", never_by_position, has_baseline=False))
    (row,) = [row for (name, _), row in rows_of([outcome(0, 1, 1), outcome(1, 1, 0)]).items() if name == "own"]
    assert (row["value"], row["position_baseline"]) == (1.0, None)
