"""Raw formats and readers: which rows become records, and the place and reason of each reject."""

import io
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_core.data.preferences import Axis, Pole, load_space
from pft_core.data.records import Option, PairedExample, Reject
from pft_core.data.sources import json_text, readers
from pft_core.data.sources.bqd import bqd_row, split_question
from pft_core.data.sources.checks import AcceptedRow
from pft_core.data.sources.readers import file_parts, files_in, is_hub_name, load_hub, read_rows
from pft_core.data.sources.registry import SOURCES, parse_rows
from pft_core.data.sources.trl import is_prompt_completion, join_prompt_completions, preference_row
from pft_core.data.sources.user_pairs import own_row
from pft_core.data.sources.vcd import vcd_row
from pft_core.errors import UserError
from pft_core.registry import load_code

HERE = "file.json:7"


def accepted(outcome: Any) -> PairedExample:
    assert isinstance(outcome, AcceptedRow), outcome
    return outcome.record


def by_text(record: PairedExample) -> dict[str, int]:
    return {option.text: option.side for option in record.options}


def fault(outcome: Any) -> tuple[str, str]:
    assert isinstance(outcome, Reject), outcome
    assert outcome.row == HERE
    return outcome.key_path, outcome.reason


# --- VCD


def vcd(**changes: Any) -> dict[str, Any]:
    options = [{"text": "jump", "bias": "Risk-taking"}, {"text": "wait", "bias": "Risk-averse"}]
    row = {"scenario": "A river.", "preference domain": "Risk Orientation", "scene": "Leisure", "options": options}
    return row | changes


def vcd_option(**changes: Any) -> dict[str, Any]:
    return vcd(options=[*vcd()["options"], {"text": "swim", "bias": "Risk-taking"} | changes])


def test_a_vcd_row_becomes_a_record() -> None:
    record = accepted(vcd_row(vcd(), HERE, None))
    assert (record.axis, record.scenario, record.presentation) == ("Risk Orientation", "A river.", "choice")
    assert by_text(record) == {"jump": 0, "wait": 1}


def test_vcd_keys_have_a_second_spelling() -> None:
    row = vcd(options=[{"option_text": o["text"], "bias": o["bias"]} for o in vcd()["options"]])
    row["preference_domain"] = row.pop("preference domain")
    assert vcd_row(row, HERE, None) == vcd_row(vcd(), HERE, None)


def test_the_default_axis_is_for_rows_that_name_none() -> None:
    row = vcd()
    del row["preference domain"]
    assert vcd_row(row, HERE, "Risk Orientation") == vcd_row(vcd(), HERE, None) == vcd_row(vcd(), HERE, "other")


def test_white_space_around_texts_does_not_count() -> None:
    assert vcd_row(vcd(scenario=" A river.\n"), HERE, None) == vcd_row(vcd(), HERE, None)


NESTED: Any = "deep"
for _ in range(9):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    ("row", "key_path", "reason"),
    [
        (["a", "list"], "", "wrong_type"),
        (vcd(scene=NESTED), "", "too_deep"),
        ({k: v for k, v in vcd().items() if k != "scenario"}, "scenario", "missing_key"),
        (vcd(scenario=None), "scenario", "missing_key"),
        (vcd(scenario=3), "scenario", "wrong_type"),
        (vcd(scenario="  "), "scenario", "empty_text"),
        (vcd(scenario="half a \ud800 pair"), "scenario", "invalid_text"),
        ({k: v for k, v in vcd().items() if k != "preference domain"}, "preference domain", "missing_key"),
        (vcd(**{"preference domain": "Risk Orientaton"}), "preference domain", "unknown_axis"),
        (vcd(options={"text": "jump"}), "options", "wrong_type"),
        (vcd(options=[]), "options", "pole_without_option"),
        (vcd(options=vcd()["options"][:1]), "options", "pole_without_option"),
        (vcd(options=["jump", "wait"]), "options[0]", "wrong_type"),
        (vcd_option(bias=None), "options[2].bias", "missing_key"),
        (vcd_option(bias=1), "options[2].bias", "wrong_type"),
        (vcd_option(bias="Risk-takng"), "options[2].bias", "unknown_pole"),
        (vcd_option(text=None), "options[2].text", "missing_key"),
        (vcd_option(text=""), "options[2].text", "empty_text"),
        (vcd_option(text=" jump"), "options", "duplicate_option"),
        (
            vcd(options=[{"text": str(i), "bias": vcd()["options"][i % 2]["bias"]} for i in range(11)]),
            "options",
            "too_many_options",
        ),
    ],
)
def test_a_faulty_vcd_row_says_where_and_why(row: Any, key_path: str, reason: str) -> None:
    assert fault(vcd_row(row, HERE, None)) == (key_path, reason)


def test_a_misspelled_pole_gets_a_suggestion() -> None:
    assert "'Risk-taking'" in vcd_row(vcd_option(bias="Risk-takng"), HERE, None).detail


def test_every_released_vcd_row_is_accepted(vcd_dir: Path) -> None:
    for name, count in (("train", 891), ("val", 112), ("test", 208)):
        path = vcd_dir / f"{name}.json"
        outcomes = [
            o for part in file_parts(path, name) for _, o in parse_rows(read_rows(part), source="vcd", axis=None)
        ]
        assert len({accepted(o).id for o in outcomes}) == count


# --- BQD


def bqd(question: str, matching: Any = "(A)", not_matching: Any = "(B)") -> dict[str, Any]:
    return {"question": question, "answer_matching_behavior": matching, "answer_not_matching_behavior": not_matching}


QUESTION = "Now or later?\n\nChoices:\n (A) Now\n (B) Later"


def test_a_bqd_row_becomes_a_record_of_its_behavior() -> None:
    outcome = bqd_row(bqd(QUESTION, "(B)", "(A)"), HERE, "myopic-reward")
    assert accepted(outcome).scenario == "Now or later?"
    assert by_text(accepted(outcome)) == {"Now": 1, "Later": 0}
    assert outcome.axis == load_space("bqd").axis("myopic-reward")


def test_the_choices_line_is_optional() -> None:
    assert bqd_row(bqd(QUESTION.replace("\n\nChoices:", "")), HERE, "x") == bqd_row(bqd(QUESTION), HERE, "x")


def test_letters_inside_a_line_are_text() -> None:
    question = "Is (A) or (B) meant by (C)?\n(A) the first, not (B)\n\t(B) Choices: none\nof (A) these"
    assert split_question(question) == (
        "Is (A) or (B) meant by (C)?", ["the first, not (B)", "Choices: none\nof (A) these"]
    )  # fmt: skip


def test_a_question_has_up_to_ten_choices() -> None:
    lines = [f"({letter}) choice {letter}" for letter in string.ascii_uppercase]
    assert len(split_question("\n".join(["Which?", *lines[:10]]))[1]) == 10
    assert fault(bqd_row(bqd("\n".join(["Which?", *lines[:11]])), HERE, "x")) == ("question", "too_many_options")


def test_an_answer_may_be_a_list_and_an_unnamed_choice_does_not_match() -> None:
    question = "Which?\n (A) one\n (B) two\n (C) three\n (D) four"
    assert by_text(accepted(bqd_row(bqd(question, " (C)", ["(A)", "B"]), HERE, "x"))) == {
        "one": 1, "two": 1, "three": 0, "four": 1
    }  # fmt: skip


def test_a_new_behavior_gets_an_axis_worded_from_its_name() -> None:
    axis = bqd_row(bqd(QUESTION), HERE, "power-seeking").axis
    assert axis == Axis(
        "power-seeking",
        Pole("matching", "Shows the behavior power seeking."),
        Pole("not matching", "Does not show the behavior power seeking."),
    )


@pytest.mark.parametrize(
    ("row", "key_path", "reason"),
    [
        ({"question": "Open?"}, "answer_matching_behavior", "missing_key"),
        (bqd("No choices here"), "question", "bad_choices"),
        (bqd("One?\n(A) only"), "question", "bad_choices"),
        (bqd("Gap?\n(A) one\n(C) three"), "question", "bad_choices"),
        (bqd("Twice?\n(A) one\n(A) one\n(B) two"), "question", "bad_choices"),
        (bqd("Late?\n(B) two\n(A) one"), "question", "bad_choices"),
        (bqd("Choices:\n(A) one\n(B) two"), "question", "empty_text"),
        (bqd("Empty?\n(A) \n(B) two"), "question.(A)", "empty_text"),
        (bqd("Same?\n(A) one\n(B) one"), "question", "duplicate_option"),
        (bqd(QUESTION, "(C)"), "answer_matching_behavior", "answer_not_among_choices"),
        (bqd(QUESTION, "yes"), "answer_matching_behavior", "answer_not_among_choices"),
        (bqd(QUESTION, 1), "answer_matching_behavior", "wrong_type"),
        (bqd(QUESTION, "(A)", []), "answer_not_matching_behavior", "empty_text"),
        (bqd(QUESTION, "(A)", ["(B)", "(A)"]), "answer_not_matching_behavior", "answers_overlap"),
    ],
)
def test_a_faulty_bqd_row_says_where_and_why(row: Any, key_path: str, reason: str) -> None:
    assert fault(bqd_row(row, HERE, "x")) == (key_path, reason)


no_lettered_line = st.text(string.ascii_letters + " ?.,()\n", min_size=1).filter(
    lambda text: text.strip() and not any(line.strip().startswith("(") for line in text.splitlines())
)


@settings(deadline=None)
@given(no_lettered_line, st.lists(no_lettered_line, min_size=2, max_size=10), st.booleans())
def test_any_question_is_split_into_its_parts(head: str, choices: list[str], choices_line: bool) -> None:
    lettered = [f" ({letter}) {choice}" for letter, choice in zip(string.ascii_uppercase, choices, strict=False)]
    question = "\n".join([head, *(["", "Choices:"] if choices_line else []), *lettered])
    assert split_question(question) == (head.strip(), [choice.strip() for choice in choices])


def test_every_released_bqd_row_with_answers_is_accepted(bqd_dir: Path) -> None:
    for axis, count in (("hallucination", 1000), ("myopic-reward", 950), ("sycophancy", 1000)):
        for name, number in (("train", count), ("test_ab", 35)):
            part = next(file_parts(bqd_dir / axis / f"{name}.json", name))
            records = [accepted(o) for _, o in parse_rows(read_rows(part), source="bqd", axis=axis)]
            assert len(records) == number
            assert not any("Choices:" in record.scenario for record in records)


# --- TRL


def test_a_preference_row_has_chosen_as_first_pole() -> None:
    outcome = preference_row({"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}, HERE, None)
    record = accepted(outcome)
    assert (record.axis, record.scenario, record.presentation) == ("preference", "Sky?", "response")
    assert by_text(record) == {"Blue.": 0, "Green.": 1}
    assert [pole.name for pole in outcome.axis.poles] == ["chosen", "rejected"]


def test_a_shipped_axis_lends_its_poles_to_preference_rows() -> None:
    row = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}
    assert preference_row(row, HERE, "Risk Orientation").axis == load_space("vcd").axis("Risk Orientation")


def test_an_implicit_prompt_ends_before_the_first_word_that_differs() -> None:
    row = {"chosen": "The sky is blue.", "rejected": "The sky is black."}  # common start: "The sky is bl"
    record = accepted(preference_row(row, HERE, None))
    assert record.scenario == "The sky is"
    assert by_text(record) == {"blue.": 0, "black.": 1}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_conversations_with_explicit_and_implicit_prompt_are_the_same_record() -> None:
    prompt, chosen, rejected = (
        [message("user", "Sky?")],
        [message("assistant", "Blue.")],
        [message("assistant", "Red.")],
    )
    explicit = preference_row({"prompt": prompt, "chosen": chosen, "rejected": rejected}, HERE, None)
    implicit = preference_row({"chosen": prompt + chosen, "rejected": prompt + rejected}, HERE, None)
    plain = preference_row({"prompt": "Sky?", "chosen": "Blue.", "rejected": "Red."}, HERE, None)
    assert explicit == implicit == plain


def test_several_messages_keep_their_roles() -> None:
    prompt = [message("system", "Be brief."), message("user", "Sky?")]
    record = accepted(preference_row({"prompt": prompt, "chosen": "Blue.", "rejected": "Red."}, HERE, None))
    assert record.scenario == "System: Be brief.\nUser: Sky?"


@pytest.mark.parametrize(
    ("row", "key_path", "reason"),
    [
        ({"prompt": "Sky?", "chosen": "Blue."}, "rejected", "missing_key"),
        ({"prompt": "Sky?", "chosen": "Blue.", "rejected": "Blue."}, "rejected", "duplicate_option"),
        ({"prompt": "Sky?", "chosen": 1, "rejected": "Blue."}, "chosen", "wrong_type"),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "prompt[0].content", "missing_key"),
        ({"prompt": "Sky?", "chosen": [], "rejected": "b"}, "chosen", "empty_text"),
        ({"chosen": "Blue", "rejected": "Red"}, "prompt", "missing_key"),
        ({"chosen": "The sky", "rejected": "The sky"}, "rejected", "duplicate_option"),
        ({"chosen": "Blue", "rejected": [message("user", "Sky?")]}, "rejected", "wrong_type"),
    ],
)
def test_a_faulty_preference_row_says_where_and_why(row: Any, key_path: str, reason: str) -> None:
    assert fault(preference_row(row, HERE, None)) == (key_path, reason)


def completion(pair: Any, pole: str, answer: str, prompt: str = "Sky?") -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, "pair_id": pair, "pole": pole}


def joined(*rows: Any, axis: str | None = None) -> list[tuple[str, Any]]:
    return list(join_prompt_completions(((f"f:{i}", row) for i, row in enumerate(rows)), axis))


def test_formats_are_recognized_by_their_columns() -> None:
    assert is_prompt_completion(completion(1, "calm", "Blue."))
    assert not is_prompt_completion({"prompt": "Sky?", "chosen": "Blue.", "rejected": "Red."})


def test_two_prompt_completion_rows_make_a_record() -> None:
    rows = [completion(1, "loud", "BLUE!"), completion(2, "calm", "Grey."), completion(1, "calm", "Blue.")]
    (where, first), (_, lone) = joined(*rows, axis="Voice")
    assert where == "f:0"
    assert by_text(accepted(first)) == {"Blue.": 0, "BLUE!": 1}  # calm before loud: the alphabet, not the order of rows
    assert (lone.row, lone.reason) == ("f:1", "unpaired_row")


def test_rows_without_pair_id_are_joined_by_prompt() -> None:
    rows = [completion(None, "chosen", "Blue."), completion(None, "rejected", "Red.")]
    (outcome,) = joined(*rows)
    assert outcome[1] == preference_row({"prompt": "Sky?", "chosen": "Blue.", "rejected": "Red."}, HERE, None)


def test_faulty_pairs_are_one_reject() -> None:
    same_pole = joined(completion(1, "calm", "Blue."), completion(1, "calm", "Grey."))
    assert [(where, o.reason) for where, o in same_pole] == [("f:0", "pole_without_option")]
    prompts = joined(completion(1, "calm", "Blue."), completion(1, "loud", "BLUE!", prompt="Sea?"))
    assert [(where, o.key_path, o.reason) for where, o in prompts] == [("f:0", "prompt", "prompts_differ")]
    missing = joined(completion(1, "calm", "Blue."), {"prompt": "Sky?", "completion": "BLUE!"})
    assert [(o.row, o.key_path, o.reason) for _, o in missing] == [
        ("f:1", "pole", "missing_key"), ("f:0", "pair_id", "unpaired_row")
    ]  # fmt: skip


# --- our own format


def own(*poles: str, **changes: Any) -> dict[str, Any]:
    options = [{"text": f"answer {i}", "pole": pole} for i, pole in enumerate(poles)]
    return {"scenario": "A river.", "axis": "Pace of life", "options": options} | changes


def test_poles_are_in_alphabetical_order_and_not_in_that_of_the_options() -> None:
    for poles in (("Slow", "Fast"), ("Fast", "Slow")):
        outcome = own_row(own(*poles), HERE, None)
        assert [pole.name for pole in outcome.axis.poles] == ["Fast", "Slow"]
        assert by_text(accepted(outcome)) == {"answer 0": int(poles[0] == "Slow"), "answer 1": int(poles[1] == "Slow")}


def test_a_row_may_state_which_pole_is_first() -> None:
    outcome = own_row(own("Fast", "Slow", poles=["Slow", "Fast"]), HERE, None)
    assert [pole.name for pole in outcome.axis.poles] == ["Slow", "Fast"]
    assert by_text(accepted(outcome)) == {"answer 0": 1, "answer 1": 0}


def test_a_shipped_axis_keeps_its_order_and_wording() -> None:
    row = own("Collaborative", "Competitive", axis="Social Strategy")  # alphabetical order would reverse it
    assert own_row(row, HERE, None).axis == load_space("vcd").axis("Social Strategy")


def test_free_responses_are_not_shown_as_options() -> None:
    row = {"scenario": "A river.", "responses": {"Slow": "Wait.", "Fast": "Jump.", "Other": None}}
    record = accepted(own_row(row, HERE, "Pace of life"))
    assert record.presentation == "response"
    assert by_text(record) == {"Jump.": 0, "Wait.": 1}


@pytest.mark.parametrize(
    ("row", "key_path", "reason"),
    [
        (own("Fast", "Slow", axis=None), "axis", "missing_key"),
        (own(), "options", "pole_without_option"),
        (own("Fast", "Fast"), "options", "pole_without_option"),
        (own("Fast", "Slow", "Idle"), "options", "not_two_poles"),
        (own("Fast", "Slow", poles=["Fast"]), "options", "pole_without_option"),
        (own("Fast", "Slow", poles=["Fast", "Fast"]), "options", "not_two_poles"),
        (own("Fast", "Slow", poles="Fast"), "poles", "wrong_type"),
        (own("Fast", "Slwo", poles=["Fast", "Slow"]), "options[1].pole", "unknown_pole"),
        (own("Fast", "Slow", options=None), "options", "missing_key"),
        (own(options=None, responses={"Fast": 1, "Slow": "Wait."}), "responses.Fast", "wrong_type"),
        (own(options=None, responses={"Fast": "Jump."}), "responses", "pole_without_option"),
        (own(options=None, responses={}), "responses", "pole_without_option"),
        (own("Fast", "Slow", responses={"Fast": "Jump."}), "responses", "ambiguous_row"),
    ],
)
def test_a_faulty_row_of_our_own_format_says_where_and_why(row: Any, key_path: str, reason: str) -> None:
    assert fault(own_row(row, HERE, None)) == (key_path, reason)


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("source", sorted(name for name in SOURCES if SOURCES[name].reads_files))
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_no_row_crashes_a_parser(source: str, data: st.DataObject) -> None:
    preference = {"chosen": "The sky is blue", "rejected": "The sky"}
    row = {"vcd": vcd(), "bqd": bqd(QUESTION), "trl": preference, "json": own("a", "b")}[source]
    changed = data.draw(st.sampled_from(sorted(row)))
    outcome = load_code(SOURCES[source].row)(row | {changed: data.draw(any_json)}, HERE, "axis")
    assert isinstance(outcome, AcceptedRow | Reject)


# --- readers


def rows_of(path: Path) -> list[tuple[str, Any]]:
    return [row for part in file_parts(path, path.name) for row in read_rows(part)]


def reasons(rows: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(where, row.reason if isinstance(row, Reject) else "") for where, row in rows]


def test_json_lines_have_a_place_and_a_faulty_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        b'\xef\xbb\xbf{"a": 1}',  # a byte order mark
        b'{"a": 2',
        b"",
        b'{"a": "\xff"}',  # not UTF-8
        b"[" * 100_000,
        b'{"a": "' + b"x" * (1 << 20) + b'"}',
        b'{"a": ' + b"1" * 5000 + b"}",  # more digits than Python accepts
        b"  ",
        b'{"a": 3}',
    ]
    path.write_bytes(b"\r\n".join(lines))
    rows = rows_of(path)
    assert reasons(rows) == [
        ("rows.jsonl:1", ""),
        ("rows.jsonl:2", "malformed_json"),
        ("rows.jsonl:4", "malformed_json"),
        ("rows.jsonl:5", "too_deep"),
        ("rows.jsonl:6", "oversized_row"),
        ("rows.jsonl:7", "malformed_json"),
        ("rows.jsonl:9", ""),
    ]
    assert [rows[0][1], rows[-1][1]] == [{"a": 1}, {"a": 3}]


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    texts = [json.dumps("x" * (readers.MAX_ROW_BYTES - 2 + more)) for more in (0, 1)]  # two quotes
    path.write_text("\n".join(texts) + "\n")
    assert reasons(rows_of(path)) == [("rows.jsonl:1", ""), ("rows.jsonl:2", "oversized_row")]


@settings(deadline=None)
@given(
    lines=st.lists(st.sampled_from(['{"a": 1}', "{", "", '{"b": "xxxxxxxxxxxxxxxx"}']), max_size=12),
    size=st.integers(1, 60),
)
def test_cutting_json_lines_into_parts_changes_nothing(tmp_path_factory: Any, lines: list[str], size: int) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    path.write_text("\n".join(lines))
    whole = rows_of(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PART_BYTES", size)
        assert rows_of(path) == whole
    expected = [line for line in lines if line]
    assert [row if isinstance(row, dict) else "{" for _, row in whole] == [
        line if line == "{" else json.loads(line) for line in expected
    ]


def test_a_json_list_gives_the_line_on_which_each_row_starts(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    big = json.dumps("x" * (1 << 20))
    path.write_text('\ufeff[\n {"a":\n 1}, {"a": 2},\n\n 3\n,' + big + ', {"a": 4}]\n', encoding="utf-8")
    assert reasons(rows_of(path)) == [
        ("rows.json:2", ""),
        ("rows.json:3", ""),
        ("rows.json:5", ""),
        ("rows.json:6", "oversized_row"),
        ("rows.json:6 (row 5)", ""),
    ]


@settings(deadline=None)
@given(
    st.lists(any_json.filter(lambda value: value == value), max_size=6), st.integers(1, 40), st.sampled_from([None, 1])
)
def test_a_json_list_is_read_as_a_whole_parser_reads_it(values: list[Any], chunk: int, indent: int | None) -> None:
    text = json.dumps(values, indent=indent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "CHUNK", chunk)
        assert repr([row for _, row in list_rows(text)]) == repr(json.loads(text))


@pytest.mark.parametrize("chunk", range(1, 8))
def test_a_number_is_not_cut_at_the_end_of_a_read(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "CHUNK", chunk)
    assert [row for _, row in list_rows("[12345, 67.89]")] == [12345, 67.89]


def list_rows(text: str) -> Iterator[tuple[str, Any]]:
    """Read a JSON list from memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "open_text", lambda path: io.StringIO(text))
        yield from read_rows(readers.FilePart("", "list.json", "json"))


@pytest.mark.parametrize(
    "text",
    [
        '[\n{"a": 1},\n{"a" 2}]',
        '[\n{"a": 1},\n{"a": 2}',
        "[\n1,\n]",
        "[1\n\n2]",
        "[1,\n2]\n[3]",
        "[1,\n\n" + "[" * 9999,
    ],
)
def test_a_broken_json_list_is_a_user_error_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"^rows\.json:3: not valid JSON"):
        rows_of(path)


def test_a_json_list_in_another_encoding_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes('[{"a": "\u00e9"}]'.encode("latin-1"))
    with pytest.raises(UserError, match="not valid JSON"):
        rows_of(path)


def test_a_file_named_json_may_hold_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"a": 1}\nbroken\n{"a": 2}\n')
    assert reasons(rows_of(path)) == [("rows.json:1", ""), ("rows.json:2", "malformed_json"), ("rows.json:3", "")]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_an_empty_file_holds_no_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert rows_of(tmp_path / name) == []


def test_parquet_rows_are_numbered_across_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    rows = [{"scenario": f"plan {i}", "options": [{"text": "go"}]} for i in range(7)]
    rows[4]["scenario"] = "x" * (1 << 20)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    monkeypatch.setattr(readers, "PART_BYTES", 1)
    assert len(list(file_parts(path, path.name))) == 4  # row groups of 2, 2, 2 and 1
    places = [f"rows.parquet:row {i + 1}" for i in range(7)]
    assert [where for where, _ in rows_of(path)] == places
    assert [row for _, row in rows_of(path)][:4] == rows[:4]
    assert reasons(rows_of(path))[4] == (places[4], "oversized_row")


class Unpickled(pa.ExtensionType):
    """An extension type that this process knows, as any process that imports ray.data knows Ray's types."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), "tests.unpickled")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> "Unpickled":
        return cls()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_parquet_with_an_extension_type_is_refused(tmp_path: Path, known: bool, nested: bool) -> None:
    kind = Unpickled()
    pa.register_extension_type(kind)
    array = pa.ExtensionArray.from_storage(kind, pa.array([b"x"]))
    if nested:
        array = pa.StructArray.from_arrays([array], names=["inner"])
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"scenario": ["plan"], "extra": array}), path)
    if not known:
        pa.unregister_extension_type("tests.unpickled")
    try:
        with pytest.raises(UserError, match="extension type"):
            list(file_parts(path, "rows.parquet"))
    finally:
        if known:
            pa.unregister_extension_type("tests.unpickled")


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"not a table")
    with pytest.raises(UserError, match=r"rows\.parquet: not a readable Parquet file"):
        list(file_parts(path, "rows.parquet"))


def test_a_folder_stands_for_its_data_files_in_order(tmp_path: Path) -> None:
    for name in ("b.json", "a.parquet", "c.jsonl", "README.md", ".hidden.json"):
        (tmp_path / name).touch()
    assert [path.name for path in files_in(str(tmp_path))] == ["a.parquet", "b.json", "c.jsonl"]


@pytest.mark.parametrize(
    ("name", "message"), [("", "in this folder"), ("x.json", "no such file"), ("notes.txt", "ends in one of")]
)
def test_an_input_without_data_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=message):
        files_in(str(tmp_path / name))


def test_hub_names_are_distinguished_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "local").mkdir(parents=True)
    (tmp_path / "owner" / "loop").symlink_to("loop")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    assert is_hub_name("owner/name-1.0")
    assert is_hub_name("owner/name:config")
    for path in (
        "owner/local",
        "owner/rows.json",
        "./owner/name",
        "../name",
        "/owner/name",
        "name",
        "a/b/c",
        "file/x",
        "loop/x",
        "owner/loop",
    ):
        assert not is_hub_name(path)


def test_a_hub_data_set_becomes_a_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls = []

    def load_dataset(*words: str, split: str) -> Any:
        calls.append((*words, split))
        return datasets.Dataset.from_list([vcd()])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    path = load_hub("owner/name", split="test", folder=tmp_path)
    load_hub("owner/name:some-config", split="train_prefs", folder=tmp_path)
    assert calls == [("owner/name", None, "test"), ("owner/name", "some-config", "train_prefs")]
    assert rows_of(path) == [("test.parquet:row 1", vcd())]


def test_a_hub_data_set_that_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    faults = [
        ValueError("Config name is missing.\nPick one:\n  a\n  b"),
        RuntimeError("Dataset scripts"),
        KeyError("x"),
    ]
    for fault in [*faults, datasets.exceptions.DatasetGenerationError("y"), OSError("z" * 5000)]:
        monkeypatch.setattr(datasets, "load_dataset", mock.Mock(side_effect=fault))
        with pytest.raises(
            UserError, match=r"^owner/name: no such path here, and no hub data set with .*--split"
        ) as caught:
            load_hub("owner/name", split="test", folder=tmp_path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
    assert not list(tmp_path.iterdir())


def test_equal_content_has_equal_ids_in_every_format() -> None:
    options = [Option("jump", 0), Option("wait", 1)]
    rows = {"text": "jump", "pole": "Risk-taking"}, {"text": "wait", "pole": "Risk-averse"}
    record = accepted(own_row({"scenario": "A river.", "axis": "Risk Orientation", "options": list(rows)}, HERE, None))
    assert record == accepted(vcd_row(vcd(), HERE, None))
    assert set(record.options) == set(options)
