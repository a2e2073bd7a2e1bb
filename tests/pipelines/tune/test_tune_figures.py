"""The figures of a trial, counted by hand."""

import pytest

from pft_core.evaluation.metrics.outcome import Outcome
from pipelines.tune.figures import figures_of, gaps, intervals_of

FIRST, SECOND = frozenset({0}), frozenset({1})


def outcome(number: int, chosen, *, axis: str = "a", form: str = "one") -> Outcome:
    return Outcome(f"{axis}{number}", f"{axis}{number}", axis, form, (0, 1), chosen)  # type: ignore[arg-type]


RIGHT, ALWAYS_FIRST, WRONG = (FIRST, SECOND), (FIRST, FIRST), (SECOND, FIRST)


def test_poles_and_both_right_are_means_over_axes() -> None:
    # Axis a: 2 items, first pole 2/2, second 1/2, both 1/2. Axis b: 1 item of 4, first 1/4, second 1/4, both 1/4.
    outcomes = [outcome(0, RIGHT), outcome(1, ALWAYS_FIRST)]
    outcomes += [outcome(0, RIGHT, axis="b"), *(outcome(n, WRONG, axis="b") for n in (1, 2, 3))]
    figures = figures_of(outcomes, form="one")
    assert figures["pole_first"] == pytest.approx((1 + 1 / 4) / 2)
    assert figures["pole_second"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert figures["worse_pole"] == figures["pole_second"]
    assert figures["both_right"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert figures["all_first"] is figures["all_second"] is None


def test_the_poles_can_be_those_of_all() -> None:
    outcomes = [outcome(0, RIGHT), outcome(1, WRONG), outcome(0, ALWAYS_FIRST, form="all")]
    outcomes.append(outcome(1, RIGHT, form="all"))
    figures = figures_of(outcomes, form="all")
    assert (figures["pole_first"], figures["pole_second"]) == (1.0, 0.5)
    assert (figures["all_first"], figures["all_second"]) == (1.0, 0.5)
    assert figures["both_right"] == 0.5  # always for the choose-one form


def test_the_interval_of_the_worse_pole_is_that_of_the_pole_that_does_worse() -> None:
    outcomes = [outcome(n, RIGHT if n % 4 else ALWAYS_FIRST) for n in range(40)]
    intervals = intervals_of(outcomes, form="one")
    assert intervals["worse_pole"] == intervals["pole_second"]
    assert intervals["pole_first"] == [1.0, 1.0]
    low, high = intervals["pole_second"]
    assert low < 0.75 < high


def test_a_gap_is_paired_on_the_items_that_both_answered() -> None:
    trained = [outcome(n, RIGHT) for n in range(8)]
    soup = [outcome(n, RIGHT if n % 2 else ALWAYS_FIRST) for n in range(10)]
    found = gaps(soup, trained, form="one")
    # The soup is right on the first pole everywhere, on the second in 4 of the 8 common items.
    assert found["pole_first"] == {"soup": 1.0, "trained": 1.0, "gap": 0.0, "low": 0.0, "high": 0.0}
    second = found["pole_second"]
    assert (second["soup"], second["trained"], second["gap"]) == (0.5, 1.0, 0.5)
    assert 0 < second["low"] < 0.5 < second["high"] <= 1
