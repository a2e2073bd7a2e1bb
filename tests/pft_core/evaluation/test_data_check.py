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
    # The first option always shows the first pole, and the verb tells the poles apart; "dare" is the condition's word.
    assert measured["axes"]["Risk"]["first_option_shows_first_pole"] == 1.0
    assert measured["yardsticks"]["position"]["Risk"] == {"one": 1.0, "both_right": 1.0}
    assert measured["yardsticks"]["bag_of_words"]["Risk"] == {"one": 1.0, "both_right": 1.0}
    assert measured["yardsticks"]["condition_words"]["Risk"]["one"] >= 0.5


def test_repeated_texts_and_leaks_are_counted() -> None:
    again = item(1, "dare", "wait", scenario="SCENARIO  0.")
    measured = check({"train": [item(0, "dare", "wait"), again], "test": [item(0, "go", "stay"), again]}, SPACE)
    assert measured["parts"]["train"]["repeated_scenarios"] == 1
    # Both test records have a scenario of the training part; one has its options too.
    assert measured["leaks"] == [{"parts": ["train", "test"], "scenarios": 1, "options": 1}]


def test_a_part_alone_learns_its_words_from_the_other_half_of_it() -> None:
    records = [record for _, row in stored_rows(split="train") for record in [row.record]]
    measured = check({"train": records}, load_space("dilemmas"))["parts"]["train"]
    # Half of the items are twins, on which words show nothing.
    assert all(0.5 < scores["one"] < 0.75 for scores in measured["yardsticks"]["bag_of_words"].values())
    assert {axis["records"] for axis in measured["axes"].values()} == {168}


def test_too_few_records_to_learn_from_have_no_score() -> None:
    measured = check({"own": [item(0, "dare", "wait")]}, SPACE)["parts"]["own"]
    assert measured["yardsticks"]["bag_of_words"]["Risk"] is None
    assert measured["yardsticks"]["position"]["Risk"]["one"] == pytest.approx(1.0)
