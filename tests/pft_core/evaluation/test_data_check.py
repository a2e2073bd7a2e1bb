import pytest

from pft_core.data.preferences import Axis, Pole, PreferenceSpace, load_space
from pft_core.data.records import Option, PairedExample
from pft_core.data.sources.dilemmas import stored_rows
from pft_core.evaluation.data_check import check

SPACE = PreferenceSpace("s", (Axis("Risk", Pole("Daring", "Dares much."), Pole("Careful", "Takes care.")),))


def item(number: int, first: str, second: str, *, scenario: str | None = None) -> PairedExample:
    options = (Option(f"{first} {number}", 0), Option(f"{second} {number}", 1))
    return PairedExample(str(number), "Risk", scenario or f"Scenario {number}.", options)


def test_words_that_show_a_pole_and_an_order_that_never_changes_are_measured() -> None:
    parts = {
        "train": [item(n, "dare", "wait") for n in range(20)],
        "test": [item(n, "dare", "wait") for n in range(20, 30)],
    }
    measured = check(parts, SPACE)["parts"]["test"]
    # The first option always shows the first pole, and the verb tells the poles apart; "dare" is a stem of "Daring".
    assert measured["axes"]["Risk"]["first_option_shows_first_pole"] == 1.0
    assert measured["yardsticks"]["position"]["Risk"] == {"one": 1.0, "both_right": 1.0}
    assert measured["yardsticks"]["bag_of_words"]["Risk"] == {"one": 1.0, "both_right": 1.0}
    assert measured["yardsticks"]["condition_words"]["Risk"] == {"one": 1.0, "both_right": 1.0}


def test_repeated_texts_and_leaks_are_counted() -> None:
    again = item(1, "dare", "wait", scenario="SCENARIO  0.")
    measured = check({"train": [item(0, "dare", "wait"), again], "test": [item(0, "go", "stay"), again]}, SPACE)
    assert measured["parts"]["train"]["repeated_scenarios"] == 1
    # Both test records have a scenario of the training part; one has its options too.
    assert measured["leaks"] == [{"parts": ["train", "test"], "scenarios": 1, "options": 1}]


def test_a_part_alone_learns_its_words_from_the_other_half_of_it() -> None:
    for split, lowest, highest in (("train", 0.9, 1.0), ("train_twins", 0.5, 0.5)):
        records = [row.record for _, row in stored_rows(split=split)]
        measured = check({split: records}, load_space("dilemmas"))["parts"][split]
        # A half that held one twin without the other would be off 0.5.
        assert all(lowest <= scores["one"] <= highest for scores in measured["yardsticks"]["bag_of_words"].values())
        assert {axis["records"] for axis in measured["axes"].values()} == {252}


def test_too_few_records_to_learn_from_have_no_score() -> None:
    measured = check({"own": [item(0, "dare", "wait")]}, SPACE)["parts"]["own"]
    assert measured["yardsticks"]["bag_of_words"]["Risk"] is None
    assert measured["yardsticks"]["position"]["Risk"]["one"] == pytest.approx(1.0)


def test_options_that_many_scenarios_share_are_no_leak_and_are_halved_by_scenario() -> None:
    options = (Option("Yes", 0), Option("No", 1))
    records = [PairedExample(str(n), "Risk", f"Scenario {n}.", options) for n in range(40)]
    measured = check({"one": records[:20], "other": records[20:]}, SPACE)
    assert measured["leaks"] == []
    assert measured["parts"]["one"]["yardsticks"]["bag_of_words"]["Risk"] == {"one": 1.0, "both_right": 1.0}


def test_an_axis_of_one_pole_has_no_yardsticks() -> None:
    space = PreferenceSpace("s", (Axis("Risk", Pole("fitting"), None),))
    measured = check({"own": [item(n, "dare", "wait") for n in range(20)]}, space)["parts"]["own"]
    assert measured["axes"]["Risk"]["records"] == 20
    assert measured["yardsticks"] == {"position": {}, "bag_of_words": {}, "condition_words": {}}
