"""Formats of released data sets: persona, MoralChoice and PrefEval rows, and the counts of their files."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pft_core.data.preferences import Axis, Pole, load_space
from pft_core.data.records import PairedExample, Reject
from pft_core.data.sources.checks import AcceptedRow, Outcome
from pft_core.data.sources.readers import file_parts, files_in, read_rows
from pft_core.data.sources.registry import SOURCES, SourceEntry, parse_rows
from pft_core.data.sources.released.moralchoice import moralchoice_row
from pft_core.data.sources.released.persona import persona_row, trait_axis
from pft_core.data.sources.released.prefeval import is_half, join_halves, prefeval_row
from pft_core.errors import UserError

HERE = "file.json:7"


def accepted(outcome: Any) -> PairedExample:
    assert isinstance(outcome, AcceptedRow), outcome
    return outcome.record


def fault(outcome: Any) -> tuple[str, str]:
    assert isinstance(outcome, Reject), outcome
    assert outcome.row == HERE
    return outcome.key_path, outcome.reason


def sides(record: PairedExample) -> dict[str, int]:
    return {option.text: option.side for option in record.options}


def outcomes_of(path: Path, source: str) -> list[Outcome]:
    rows = (row for part in file_parts(path, path.name) for row in read_rows(part))
    return [outcome for _, outcome in parse_rows(rows, source=source, axis=SOURCES[source].axis_of(path))]


def records_of(outcomes: list[Outcome]) -> list[PairedExample]:
    return [outcome.record for outcome in outcomes if isinstance(outcome, AcceptedRow)]


def share_with_first_pole_first(records: list[PairedExample]) -> float:
    return sum(record.options[0].side == 0 for record in records) / len(records)


# --- persona


def persona(**changes: Any) -> dict[str, Any]:
    row = {
        "question": 'Would you say this?\n"Lend me the boat."',
        "statement": "Lend me the boat.",
        "label_confidence": 0.9,
        "answer_matching_behavior": " Yes",
        "answer_not_matching_behavior": " No",
    }
    return row | changes


def test_a_persona_row_asks_its_question_with_yes_and_no() -> None:
    outcome = persona_row(persona(), HERE, "risk-averse")
    assert accepted(outcome).scenario == persona()["question"]
    assert sides(accepted(outcome)) == {"Yes": 0, "No": 1}
    assert outcome.axis == load_space("persona").axis("Risk averse")


def test_the_other_answer_may_match_the_trait() -> None:
    row = persona(answer_matching_behavior=" No", answer_not_matching_behavior=" Yes")
    assert sides(accepted(persona_row(row, HERE, "risk-averse"))) == {"No": 0, "Yes": 1}


def test_a_trait_that_is_not_shipped_is_worded_by_its_name() -> None:
    axis = trait_axis("love_of-boats")
    assert axis.name == "Love of boats"
    assert [pole.name for pole in axis.poles] == ["matching", "not matching"]
    assert all("love of boats" in pole.description for pole in axis.poles)


@pytest.mark.parametrize(
    ("row", "key_path", "reason"),
    [
        (persona(question=None), "question", "missing_key"),
        (persona(statement="Sell the boat."), "statement", "statement_differs"),
        (persona(answer_matching_behavior="(A)"), "answer_matching_behavior", "not_yes_or_no"),
        (persona(answer_matching_behavior=" No"), "answer_not_matching_behavior", "answers_overlap"),
        (persona(context="It is not yours."), "context", "unused_column"),
    ],
)
def test_a_faulty_persona_row_says_where_and_why(row: Any, key_path: str, reason: str) -> None:
    assert fault(persona_row(row, HERE, "risk-averse")) == (key_path, reason)


def test_every_released_persona_row_is_accepted_under_a_shipped_wording(persona_dir: Path) -> None:
    outcomes = {path.stem: outcomes_of(path, "persona") for path in files_in(str(persona_dir))}
    assert {name: len(records_of(rows)) for name, rows in outcomes.items()} == dict.fromkeys(outcomes, 1000)
    axes = {row.axis for rows in outcomes.values() for row in rows if isinstance(row, AcceptedRow)}
    assert axes == set(load_space("persona").axes)
    records = [record for rows in outcomes.values() for record in records_of(rows)]
    assert Counter(sides(record)["Yes"] for record in records) == {0: 11000, 1: 11000}
    assert abs(share_with_first_pole_first(records) - 0.5) < 0.01


# --- MoralChoice


def moral(first: str = "No", second: str = "Yes", **changes: Any) -> dict[str, Any]:
    row = {
        "scenario_id": "H_1",
        "ambiguity": "high",
        "generation_rule": "Do not cheat",
        "context": "You play cards with a friend.",
        "action1": "I play.",
        "action2": "I peek.",
        "a1_cheat": first,
        "a2_cheat": second,
        "a1_death": "No",
    }
    return row | changes


@pytest.mark.parametrize(("first", "second", "keeper"), [("No", "Yes", "I play."), ("Yes", "No", "I peek.")])
def test_the_action_that_keeps_the_rule_shows_the_first_pole(first: str, second: str, keeper: str) -> None:
    outcome = moralchoice_row(moral(first, second), HERE, None)
    record = accepted(outcome)
    assert (record.axis, record.scenario) == ("Do not cheat", "You play cards with a friend.")
    assert [text for text, side in sides(record).items() if side == 0] == [keeper]
    assert outcome.axis == load_space("moralchoice").axis("Do not cheat")


@pytest.mark.parametrize(
    ("row", "key_path", "reason"),
    [
        *((moral(*labels), "a1_cheat", "unclear_labels") for labels in (("No", "No"), ("Yes", "Yes"))),
        (moral("No", "No Agreement"), "a1_cheat", "unclear_labels"),
        (moral("No", "Perhaps"), "a2_cheat", "unknown_label"),
        (moral("No", ""), "a2_cheat", "empty_text"),
        (moral(generation_rule="Do not sing"), "generation_rule", "unknown_axis"),
        (moral(action2="I play."), "action2", "duplicate_option"),
        (moral(question="What now?"), "question", "unused_column"),
    ],
)
def test_a_faulty_moralchoice_row_says_where_and_why(row: Any, key_path: str, reason: str) -> None:
    assert fault(moralchoice_row(row, HERE, None)) == (key_path, reason)


@pytest.mark.parametrize(
    ("spelling", "rule", "column"),
    [
        ("Do not break promise", "Do not break your promises", "break_promise"),
        ("Do cause pain", "Do not cause pain", "pain"),
    ],
)
def test_another_spelling_of_a_rule_is_the_same_axis(spelling: str, rule: str, column: str) -> None:
    row = moral(generation_rule=spelling, **{f"a1_{column}": "No", f"a2_{column}": "Yes"})
    assert moralchoice_row(row, HERE, None) == moralchoice_row(row | {"generation_rule": rule}, HERE, None)
    assert accepted(moralchoice_row(row, HERE, None)).axis == rule


def test_the_clear_rows_of_the_released_file_are_accepted_and_the_others_are_counted(moralchoice_dir: Path) -> None:
    outcomes = outcomes_of(moralchoice_dir / "high_ambiguity.csv", "moralchoice")
    records, rejects = records_of(outcomes), [outcome for outcome in outcomes if isinstance(outcome, Reject)]
    assert (len(outcomes), len(records)) == (680, 553)
    assert Counter(reject.reason for reject in rejects) == {"unclear_labels": 127}
    by_axis = Counter(record.axis for record in records)
    assert set(by_axis) == {axis.name for axis in load_space("moralchoice").axes}
    assert by_axis["Do not break your promises"] == 67  # 66 under this spelling, and one under another
    assert abs(share_with_first_pole_first(records) - 0.5) < 0.05  # 0.98 in the order of the file


# --- PrefEval

CHOICE: dict[str, Any] = {
    "preference": "I like old boats.",
    "question": "Which boat is next?",
    "explanation": "The person likes old boats.",
    "implicit_query": "Which boat?",
    "options": ["The old one.", "The new one."],
    "conversation": {
        "query": "Which boat?",
        "assistant_options": "1. The new one.\n2. The old one.",
        "user_selection": "The old one.",
        "assistant_acknowledgment": "Good choice.",
    },
    "aligned_op": "The old one.",
}
OPTIONS_KEY = "classification_task_options"
OPTIONS: dict[str, Any] = {
    "preference": CHOICE["preference"],
    "question": CHOICE["question"],
    "explanation": "Here, too.",
    "violation_probability": 0.9,
    OPTIONS_KEY: ["The barge of 1890.", "A speedboat.", "A kayak.", "A ferry."],
}


def joined(*rows: Any) -> list[tuple[str, Outcome]]:
    return list(join_halves([(f"file:{i}", row) for i, row in enumerate(rows, 1)], "travel_boats"))


@pytest.mark.parametrize("rows", [(CHOICE, OPTIONS), (OPTIONS, CHOICE)])
def test_the_two_halves_of_a_prefeval_item_make_one_record_with_one_pole(rows: tuple[Any, Any]) -> None:
    ((where, outcome),) = joined(*rows)
    record = accepted(outcome)
    assert where == "file:1"
    assert (record.axis, outcome.axis) == ("Travel boats", Axis("Travel boats", Pole("fitting"), None))
    assert [turn.role for turn in record.turns] == ["user", "assistant", "user", "assistant", "user"]
    assert [turn.content for turn in record.turns] == [*CHOICE["conversation"].values(), CHOICE["question"]]
    assert record.scenario.endswith("\nAssistant: Good choice.\nUser: Which boat is next?")
    assert sides(record) == {"The barge of 1890.": 0, "A speedboat.": 1, "A kayak.": 1, "A ferry.": 1}


def test_a_prefeval_row_with_both_halves_needs_no_joining() -> None:
    assert not is_half(CHOICE | OPTIONS)
    assert is_half(CHOICE)
    assert is_half(OPTIONS)
    assert [(HERE, prefeval_row(CHOICE | OPTIONS, HERE, "travel_boats"))] == [
        (HERE, outcome) for _, outcome in joined(OPTIONS, CHOICE)
    ]


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ((CHOICE,), ("file:1", "question", "unpaired_row")),
        ((CHOICE, CHOICE, OPTIONS), ("file:2", "question", "repeated_half")),
        ((OPTIONS | {"preference": "No."}, CHOICE), ("file:1", "question", "unpaired_row")),
        (({"preference": "No.", "question": "Who?"},), ("file:1", "conversation", "missing_key")),
        ((CHOICE | {"conversation": "None."}, OPTIONS), ("file:1", "conversation", "wrong_type")),
        ((CHOICE | {"conversation": {}}, OPTIONS), ("file:1", "conversation.query", "missing_key")),
        ((CHOICE, OPTIONS | {OPTIONS_KEY: ["A ferry."]}), ("file:1", OPTIONS_KEY, "pole_without_option")),
        ((CHOICE, OPTIONS | {"history": "The last boat sank."}), ("file:1", "history", "unused_column")),
    ],
)
def test_a_faulty_prefeval_row_says_where_and_why(rows: tuple[Any, ...], fault: tuple[str, str, str]) -> None:
    reject = next(outcome for _, outcome in joined(*rows) if isinstance(outcome, Reject))
    assert (reject.row, reject.key_path, reject.reason) == fault


def test_every_released_prefeval_item_is_joined_and_its_options_are_drawn(prefeval_dir: Path) -> None:
    records = []
    for path in files_in(str(prefeval_dir / "choice")):
        pair = [path, prefeval_dir / "options" / path.name]
        rows = [row for each in pair for part in file_parts(each, each.name) for row in read_rows(part)]
        outcomes = [outcome for _, outcome in join_halves(rows, SOURCES["prefeval"].axis_of(path))]
        assert len(outcomes) == len(records_of(outcomes)) == len(rows) / 2
        records += records_of(outcomes)
    assert len(records) == 503
    assert len({record.axis for record in records}) == 10
    assert abs(share_with_first_pole_first(records) - 0.25) < 0.05  # 1.0 in the order of the files


# --- the axis that a file's place names


@pytest.mark.parametrize("name", ["risk-averse.jsonl", "risk-averse.jsonl.gz", "risk-averse.json.zst"])
def test_a_file_names_the_axis_without_its_suffixes(name: str) -> None:
    assert SOURCES["persona"].axis_of(Path("somewhere") / name) == "risk-averse"
    assert SOURCES["bqd"].axis_of(Path("somewhere") / name) == "somewhere"
    assert SOURCES["vcd"].axis_of(Path("somewhere") / name) is None


def test_an_axis_comes_from_a_file_or_from_a_folder_and_not_from_both() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        SourceEntry(persona_row, axis_is_folder=True, axis_is_file=True)
