"""Cells, pick, front and sentences of a search, from handmade rows."""

from pathlib import Path

import pytest

from pipelines.config import RunConfig
from pipelines.config.search_settings import SearchSettings
from pipelines.tune import captions, conclusions
from pipelines.tune.results import SearchResult, assemble
from pipelines.tune.search_points import SearchPoint, log_ratio
from pipelines.tune.trial import Trial
from tests.builders import record, write_dataset


def row(alpha: float, beta: float, first: float, second: float, *, both: float = 0.5, **changes) -> dict:
    """Make a finished trial whose intervals reach five points to each side."""
    figures = {"pole_first": first, "pole_second": second, "worse_pole": min(first, second), "both_right": both}
    intervals = {name: [value - 0.05, value + 0.05] for name, value in figures.items()}
    source = "base" if alpha == beta == 0 else "trained"
    whole = conclusions.NO_FIGURES | {"status": "finished", "error": None, "rung_losses": [], "steps": 10}
    place = {"alpha": alpha, "beta": beta, "t": log_ratio(alpha, beta), "source": source, "changes": {}}
    return {**whole, **place, **figures, "intervals": intervals, "low": both - 0.05, "high": both + 0.05, **changes}


def not_finished(alpha: float, beta: float, status: str, **changes) -> dict:
    nothing = {**conclusions.NO_FIGURES, "worse_pole": None}
    return {**row(alpha, beta, 0, 0), **nothing, "status": status, **changes}


ENDS = [row(0, 2, 0.1, 0.9), row(2, 0, 0.9, 0.2)]
MIDDLE = row(1, 1, 0.8, 0.7)
BASE = row(0, 0, 0.95, 0.95)


def findings(rows, verification=()) -> dict:
    return {"pick": conclusions.pick(rows, "worse_pole"), "verification": verification, **conclusions.trade_off(rows)}


def test_the_pick_has_the_best_worse_pole_and_is_never_the_base() -> None:
    chosen = conclusions.pick([BASE, *ENDS, MIDDLE], "worse_pole")
    assert (chosen["trial"], chosen["alpha"], chosen["beta"], chosen["t"]) == (3, 1, 1, 0.0)


def test_ties_go_to_both_right_and_then_to_the_more_balanced() -> None:
    rows = [row(2, 1, 0.7, 0.9, both=0.6), row(1, 2, 0.9, 0.7, both=0.65)]
    assert conclusions.pick(rows, "worse_pole")["trial"] == 1
    rows = [row(2, 0.5, 0.7, 0.9), row(2, 1, 0.7, 0.9), row(0.25, 1, 0.9, 0.7)]
    assert conclusions.pick(rows, "worse_pole")["trial"] == 1


def test_the_pick_can_follow_another_metric() -> None:
    rows = [row(1, 1, 0.8, 0.8, both=0.6), row(1, 2, 0.7, 0.7, both=0.7)]
    assert conclusions.pick(rows, "both_right")["trial"] == 1


def test_what_did_not_finish_is_not_picked() -> None:
    rows = [not_finished(1, 1, "stopped"), not_finished(2, 1, "failed", error="it broke")]
    assert conclusions.pick(rows, "worse_pole") is None
    assert conclusions.trade_off(rows) == {"front": [], "hypervolume": None, "knee": None}
    assert captions.sentences(rows, findings(rows)) == ["No trial has finished, so no ratio was picked."]
    assert captions.warnings(rows, []) == ["2:1 failed: it broke"]
    changed = not_finished(2, 1, "failed", error="it broke", changes={"train.lr": 0.1})
    assert captions.warnings([changed], []) == ["2:1 with train.lr=0.1 failed: it broke"]


def test_every_cell_of_the_grid_names_the_trial_of_its_ratio() -> None:
    rows = [*ENDS, MIDDLE, BASE]
    cells = conclusions.cells_of(
        SearchSettings(alphas=[0, 1, 2], betas=[0, 1, 2], space={}),
        [*rows, row(1, 2, 0.5, 0.8), row(2, 1, 0.8, 0.5)],
        is_grid=True,
    )
    by_place = {(cell["alpha"], cell["beta"]): (cell["source"], cell["trial"]) for cell in cells}
    assert len(cells) == 9
    assert by_place[0, 0] == ("base", 3)
    assert by_place[0, 2] == ("trained", 0)
    assert by_place[0, 1] == ("same_ratio", 0)
    assert by_place[1, 1] == ("trained", 2)
    assert by_place[2, 2] == ("same_ratio", 2)
    assert by_place[1, 2] == ("trained", 4)
    assert next(cell for cell in cells if (cell["alpha"], cell["beta"]) == (2, 2))["both_right"] == 0.5


def test_cells_of_other_choices_are_answered_by_their_own_trials() -> None:
    rows = [row(1, 1, 0.5, 0.5, changes={"train.lr": 0.1}), row(1, 1, 0.9, 0.9, changes={"train.lr": 0.2}), BASE]
    search = SearchSettings(alphas=[0, 1], betas=[0, 1], space={"train.lr": [0.1, 0.2]})
    rows += [row(a, b, 0.5, 0.5, changes={"train.lr": lr}) for lr in (0.1, 0.2) for a, b in ((0, 1), (1, 0))]
    cells = conclusions.cells_of(search, rows, is_grid=True)
    assert [cell["trial"] for cell in cells if (cell["alpha"], cell["beta"]) == (1, 1)] == [0, 1]
    assert [cell["trial"] for cell in cells if (cell["alpha"], cell["beta"]) == (0, 0)] == [2, 2]


def test_without_a_grid_every_trial_is_a_cell() -> None:
    rows = [row(1.5, 0.5, 0.5, 0.5), row(0.4, 1.6, 0.5, 0.5)]
    assert [cell["alpha"] for cell in conclusions.cells_of(SearchSettings(), rows, is_grid=False)] == [1.5, 0.4]


def test_the_words_say_whether_zero_fails_on_its_side_and_the_middle_is_best() -> None:
    lines = captions.sentences([*ENDS, MIDDLE], findings([*ENDS, MIDDLE]))
    assert lines[0].startswith(
        "Picked 1:1 (best worse pole, ties broken by both right): its worse pole is right in 70.0%"
    )
    assert "(0:1), the first pole is right in 10.0% (5.0% to 15.0%), compared with 80.0% (75.0% to 85.0%)" in lines[1]
    assert lines[1].endswith("it fails there.")
    assert lines[3] == "Equal weights are best on the worse pole."


def test_the_words_say_where_it_is_otherwise() -> None:
    rows = [row(0, 2, 0.78, 0.9), row(2, 0, 0.9, 0.2), MIDDLE, row(1, 0.5, 0.85, 0.8)]
    lines = captions.sentences(rows, findings(rows))
    assert lines[1].endswith("it does not clearly fail there.")
    assert "not best on the worse pole: 2:1 has 80.0%, equal weights 70.0%" in lines[3]
    assert lines[3].endswith("beyond the interval of equal weights.")


def test_what_was_stopped_early_is_counted_with_the_rank_correlation_of_the_rest() -> None:
    rows = [row(1, b, 0.5 + b / 10, 0.9, rung_losses=[1 - b / 10]) for b in (1, 2, 3)]
    rows.append(not_finished(2, 1, "stopped", rung_losses=[2.0]))
    (sentence,) = captions.early_stops(rows)
    assert sentence.startswith("1 of 4 trials were stopped early")
    assert sentence.endswith("is 1.00.")  # the lower the first loss, the better the end


@pytest.mark.parametrize("mode", ["grid", "soup"])
def test_notes_say_what_the_figures_rest_on(mode) -> None:
    lines = captions.notes(mode=mode, is_embedded=True)
    assert any("validation data" in note for note in lines)
    assert ("linear in alpha / (alpha + beta)" in " ".join(lines)) == (mode == "soup")
    assert lines[-1].startswith("Tiny model on generated data")


@pytest.mark.parametrize(("low", "warned"), [(-0.01, False), (0.01, True)])
def test_a_soup_that_differs_from_a_training_beyond_the_interval_is_a_warning(low, warned) -> None:
    gap = {"soup": 0.5, "trained": 0.6, "gap": 0.1, "low": low, "high": 0.2}
    line = {"t": 0.0, "soup": 0, "trained": 0, "metric": {"both_right": gap}}
    assert any("differ from training here: at 1:1" in text for text in captions.warnings([MIDDLE], [line])) == warned


def test_the_pick_is_held_against_the_untrained_base() -> None:
    weak, strong = row(0, 0, 0.5, 0.5, both=0.1), row(0, 0, 0.7, 0.7, both=0.6)
    for base, verdict in (
        (weak, "clearly above it on worse pole and both right."),
        (strong, "not clearly above it on either."),
    ):
        (sentence,) = captions.against_base([MIDDLE, base], MIDDLE)
        assert sentence.endswith(f"the pick is {verdict}")
    assert captions.against_base([MIDDLE], MIDDLE) == []


@pytest.mark.parametrize(("validated", "num_shared"), [(range(6, 10), 2), (range(8, 10), 0)])
def test_a_ratio_that_is_picked_on_trained_scenarios_is_a_warning(
    validated: range, num_shared: int, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", [record(n) for n in range(8)])
    validation = write_dataset(tmp_path / "validation", [record(n) for n in validated])
    config = RunConfig(
        name="mine", data=str(data), validation_data=str(validation), model="toyworld", storage=str(tmp_path / "runs")
    )
    report = assemble(config, SearchResult([Trial(config, SearchPoint(1.0, 1.0), False)], {}, {}), "optuna")
    lines = [warning for warning in report["warnings"] if "in its training data too" in warning]
    assert [text.split(" validation ")[0] for text in lines] == (["2 of the 4"] if num_shared else [])
