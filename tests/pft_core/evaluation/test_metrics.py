"""Metrics by name: attributes of the built-in ones, and metrics of a plugin."""

from dataclasses import replace

import pytest

from pft_core.errors import UserError
from pft_core.evaluation.metrics.counts import count_table
from pft_core.evaluation.metrics.metric import Metric
from pft_core.evaluation.metrics.metric_rows import report_rows
from pft_core.evaluation.metrics.outcome import Outcome, always_by_position
from pft_core.evaluation.metrics.registry import METRICS, metrics_where, pairs_first
from tests.builders import SPACE


def outcome(number: int, first: int | None, second: int | None, *, form="one") -> Outcome:
    """Return an outcome whose options show sides 0 and 1; first, second: the options chosen under each pole."""
    chosen = tuple(None if option is None else frozenset({option}) for option in (first, second))
    return Outcome(f"i{number}", f"s{number}", "Risk", form, (0, 1), chosen, frozenset({0}), frozenset({1}))


def takes_first(outcome: Outcome, side: int) -> tuple[float, float]:
    return float(outcome.chosen[side] == frozenset({0})), 1.0


def same_choice(outcome: Outcome) -> tuple[float, float]:
    return float(outcome.chosen[0] == outcome.chosen[1]), 1.0


@pytest.fixture
def own_metrics(monkeypatch) -> None:
    """Register two metrics as a plugin does, for one test."""
    monkeypatch.setattr(METRICS, "_entries", {name: METRICS[name] for name in METRICS})
    METRICS.add("takes_first", Metric("Takes first", "the first option is chosen", "pole", takes_first))
    METRICS.add("same", Metric("Same", "one choice under both", "pair", f"{__name__}:same_choice", form="all"))


OUTCOMES = [outcome(0, 0, 1), outcome(1, 0, 0), outcome(2, 1, None), outcome(3, 1, 1)]


def rows_of(outcomes: list[Outcome]) -> dict:
    rows = report_rows(outcomes, policy="p", space=SPACE, trained_poles=None)
    return {(row["metric"], row["pole"]): row for row in rows}


def test_a_plugin_metric_has_rows_beside_the_built_in_ones(own_metrics) -> None:
    rows = rows_of(OUTCOMES)
    # The first option is chosen for two of four items under the first pole, and for one under the second.
    first, second = rows["takes_first", "Bold"], rows["takes_first", "Careful"]
    assert (first["value"], second["value"], first["n"]) == (2 / 4, 1 / 4, 4)
    # Position alone takes the first option for the first pole and the second option for the second pole.
    assert (first["position_baseline"], second["position_baseline"]) == (1.0, 0.0)
    assert (first["unparsed"], second["unparsed"]) == (0.0, 1 / 4)
    assert first["low"] <= first["value"] <= first["high"]
    assert {key for key in rows if key[0] == "one"} == {("one", "Bold"), ("one", "Careful")}
    assert all(metric != "same" for metric, _ in rows), "it has the other form"


def test_a_pair_metric_may_have_any_form_and_an_import_path(own_metrics) -> None:
    rows = rows_of([outcome(0, 0, 0, form="all"), outcome(1, 0, 1, form="all")])
    assert rows["same", None]["value"] == 1 / 2
    assert rows["same", None]["position_baseline"] == 0.0


def test_a_plugin_metric_is_counted_over_seeds(own_metrics) -> None:
    runs = [OUTCOMES, [outcome(n, 0, 0) for n in range(4)]]
    table = count_table(runs, "takes_first", axis=None, side=None)
    assert table is not None
    assert table.values() == [3 / 8, 1.0]


def test_a_name_registers_once_and_an_unknown_one_suggests_the_nearest(own_metrics) -> None:
    with pytest.raises(UserError, match="metric 'same' is registered already"):
        METRICS.add("same", METRICS["one"])
    with pytest.raises(UserError, match="Did you mean 'takes_first'"):
        METRICS["take_first"]


def test_metrics_of_right_answers_lead_a_report_and_pairs_come_first() -> None:
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
    (lambda outcome, side: (float("nan"), 1.0), r"the measure returned \(nan, 1\.0\): return a numerator"),
    (lambda outcome, side: (1.0, float("inf")), r"returned \(1\.0, inf\).*both finite"),
    (lambda outcome, side: (1e308, 1.0), r"returned \(1e\+308, 1\.0\)"),  # the sum of two is infinite
    (lambda outcome, side: 0.5, r"returned 0\.5: return a numerator and a denominator"),
    (lambda outcome, side: None, r"returned None: .*\(0 and 0 if there is nothing to count\)"),
]


@pytest.mark.parametrize(("measure", "message"), WRONG)
def test_a_measure_that_fails_or_returns_no_two_finite_numbers_is_named(own_metrics, measure, message) -> None:
    METRICS.add("broken", Metric("Broken", "broken", "pole", measure))
    with pytest.raises(UserError, match=rf"^policy p: metric 'broken', item 'i0': .*{message}"):
        rows_of(OUTCOMES)
    with pytest.raises(UserError, match=rf"^metric 'broken', item 'i0': .*{message}"):
        count_table([OUTCOMES], "broken", axis=None, side=None)


def test_a_measure_without_a_baseline_never_gets_the_position_outcome(own_metrics) -> None:
    def never_by_position(outcome: Outcome) -> tuple[float, float]:
        return 1.0 / (outcome.chosen != always_by_position(outcome).chosen), 1.0

    METRICS.add("own", Metric("Own", "own", "pair", never_by_position, has_baseline=False))
    (row,) = [row for (name, _), row in rows_of([outcome(0, 1, 1), outcome(1, 1, 0)]).items() if name == "own"]
    assert (row["value"], row["position_baseline"]) == (1.0, None)


def first_pole_moves(outcome: Outcome) -> tuple[float, float]:
    """Return how far the first pole's probability moves with the condition; 0 and 0 without probabilities."""
    if not outcome.probabilities:
        return 0.0, 0.0
    first, second = (row[outcome.sides.index(0)] for row in outcome.probabilities)
    return first - second, 1.0


def test_position_alone_is_certain_of_its_choice_for_a_metric_that_reads_probabilities(own_metrics) -> None:
    METRICS.add("moves", Metric("Moves", "moves", "pair", first_pole_moves))
    scored = [
        replace(outcome(0, 0, 1), probabilities=((0.9, 0.1), (0.3, 0.7))),
        replace(outcome(1, 0, 0), probabilities=((0.8, 0.2), (0.6, 0.4))),
        replace(outcome(2, 0, 0), sides=(1, 0), probabilities=((0.5, 0.5), (0.5, 0.5))),
    ]
    row = rows_of(scored)["moves", None]
    assert row["value"] == pytest.approx((0.6 + 0.2 + 0.0) / 3)
    # Position takes option 0 for the first pole and option 1 for the second: 1 - 0, 1 - 0, and 0 - 1 in the third item.
    assert row["position_baseline"] == pytest.approx((1 + 1 - 1) / 3)


def test_a_metric_of_answers_without_a_condition_has_no_position_baseline(own_metrics) -> None:
    METRICS.add(
        "unasked", Metric("Unasked", "unasked", "base", lambda o: (float(o.shows_only(o.unconditioned, 0)), 1.0))
    )
    row = rows_of(OUTCOMES)["unasked", None]
    assert (row["value"], row["position_baseline"]) == (1.0, None)
