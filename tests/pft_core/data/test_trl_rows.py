"""Published preference rows: the question is read as TRL reads it, or the row is rejected with the column's name."""

import ast
import copy
import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pft_core.data.records import PairedExample, Reject
from pft_core.data.sources.bqd import bqd_row
from pft_core.data.sources.checks import AcceptedRow
from pft_core.data.sources.dialogues import dialogue_text
from pft_core.data.sources.trl import join_prompt_completions, preference_row
from pft_core.data.sources.user_pairs import own_row
from pft_core.data.sources.vcd import vcd_row

HERE = "file.jsonl:7"
USER, OTHER = {"role": "user", "content": "Name a river in Peru."}, {"role": "user", "content": "Name a sea."}
SYSTEM = {"role": "system", "content": "Be brief."}
GOOD, BAD = {"role": "assistant", "content": "The Ucayali."}, {"role": "assistant", "content": "No idea."}
ROW = {"prompt": "Name a river in Peru.", "chosen": "The Ucayali.", "rejected": "No idea."}


def record(row: dict[str, Any]) -> PairedExample:
    outcome = preference_row(row, HERE, None)
    assert isinstance(outcome, AcceptedRow), outcome
    return outcome.record


def read(row: dict[str, Any]) -> tuple[str, str, str]:
    """Return scenario, chosen and rejected."""
    example = record(row)
    chosen, rejected = sorted(example.options, key=lambda option: option.side)
    return example.scenario, chosen.text, rejected.text


def fault(row: dict[str, Any]) -> tuple[str, str]:
    return fault_of(preference_row(row, HERE, None))


def fault_of(outcome: Any) -> tuple[str, str]:
    assert isinstance(outcome, Reject), outcome
    return outcome.key_path, outcome.reason


def maybe_extract_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """Call TRL's own function, taken from its source because importing the module takes seconds."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("trl is not installed")
    source = ast.parse((Path(spec.origin).parent / "data_utils.py").read_text(encoding="utf-8"))
    wanted = {"is_conversational", "extract_prompt", "maybe_extract_prompt"}
    source.body = [node for node in source.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    names: dict[str, Any] = {"Any": Any, "Sequence": list}
    exec(compile(source, "data_utils.py", "exec"), names)
    extracted = names["maybe_extract_prompt"](copy.deepcopy(row))
    return {key: extracted[key] for key in ("prompt", "chosen", "rejected")}


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {"prompt": ROW["prompt"], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": ROW["prompt"], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        {"prompt": ROW["prompt"], "chosen": [USER, BAD, USER, GOOD], "rejected": [USER, BAD, USER, BAD]},
        {"chosen": [USER, GOOD, OTHER, BAD], "rejected": [USER, BAD]},
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    ],
)
def test_a_row_is_read_as_trl_reads_it(row: dict[str, Any]) -> None:
    theirs = maybe_extract_prompt(row)
    assert read(row) == tuple(dialogue_text(value, key) for key, value in theirs.items())


def test_a_prompt_beside_whole_dialogues_is_not_repeated_in_the_scenario() -> None:
    row = {
        "prompt": ROW["prompt"], "prompt_id": "1", "messages": [USER, GOOD], "score_chosen": 8.0,
        "chosen": [USER, GOOD], "rejected": [USER, BAD], "source": "a corpus", "chosen-model": "some model",
    }  # fmt: skip
    assert read(row) == tuple(ROW.values())


def test_a_prompt_that_the_answers_repeat_is_cut_or_refused() -> None:
    assert read({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}) == tuple(ROW.values())
    repeated = {key: f"{ROW['prompt']} {ROW[key]}" for key in ("chosen", "rejected")}
    assert fault(ROW | repeated) == ("prompt", "prompt_repeated")
    assert fault(ROW | {"chosen": [USER, GOOD], "rejected": [BAD]}) == ("chosen[0].role", "not_an_answer")
    assert read({"prompt": "Hello", "chosen": "Hello you!", "rejected": "Hello?"})[1] == "Hello you!"


def test_a_prompt_that_the_dialogues_lack_is_added_or_refused() -> None:
    dialogues = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
    for prompt in ("Name a sea.", "Be nice. Name a river in Peru."):
        assert fault({"prompt": prompt, **dialogues}) == ("prompt", "prompt_differs")
    assert read({"prompt": "User: Name a river  in Peru.\nAssistant: ", **dialogues}) == tuple(ROW.values())
    assert read({"prompt": ROW["prompt"], "chosen": [GOOD], "rejected": [BAD]}) == tuple(ROW.values())
    only_system = {"chosen": [SYSTEM, GOOD], "rejected": [SYSTEM, BAD]}
    assert read(only_system | {"prompt": "Name one."})[0] == "System: Be brief.\nUser: Name one."
    assert fault({"chosen": [USER, GOOD], "rejected": [OTHER, BAD]}) == ("prompt", "missing_key")
    assert fault({"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, OTHER, BAD]})[1] == "not_an_answer"


@pytest.mark.parametrize("name", ["question", "instruction", "input", "query"])
def test_a_question_under_another_name_is_used(name: str) -> None:
    assert read({name: ROW["prompt"], "chosen": "The Ucayali.", "rejected": "The sea."})[0] == ROW["prompt"]
    assert read({**ROW, name: ""})[0] == read({**ROW, name: ROW["prompt"]})[0] == ROW["prompt"]
    assert fault({**ROW, name: "And a lake."}) == (name, "two_questions")


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_a_system_column_goes_before_the_prompt(name: str) -> None:
    scenario = "System: Be brief.\nUser: Name a river in Peru."
    assert read({name: "Be brief.", **ROW})[0] == scenario
    assert read({name: "Be brief.", "prompt": [USER], "chosen": [GOOD], "rejected": [BAD]})[0] == scenario
    assert read({name: "Be brief.", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]})[0] == scenario
    other = {name: "Be long.", "prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD]}
    assert fault(other) == (name, "two_questions")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("context", "Peru lies in South America."),
        ("history", [["Hi", "Hello"]]),
        ("conversations", [{"from": "human", "value": "Hi"}]),
        ("tools", [{"name": "search"}]),
        ("images", ["a.png"]),
        ("image", {"bytes": b"png", "path": None}),
    ],
)
def test_an_unread_part_of_the_question_is_refused_by_name(column: str, value: Any) -> None:
    assert fault({**ROW, column: value}) == (column, "unused_column")
    assert read({**ROW, column: type(value)()}) == tuple(ROW.values())


@pytest.mark.parametrize("column", ["user", "post", "task", "problem", "Frage", "text"])
def test_no_prompt_is_taken_from_the_answers_beside_a_column_that_may_hold_it(column: str) -> None:
    answers = {"chosen": "The river is blue.", "rejected": "The river is red."}
    for more in ({}, {"system": "Be brief."}):
        assert fault({column: "What is its color?", **answers, **more}) == (column, "unused_column")
    for value in ("Warum?", "cat", ("key", "What is its color?"), [[("map", "cat")]], b"cat"):
        assert fault({column: value, **answers}) == (column, "unused_column")
    beside = {"id": "row 7", "score_chosen": "8 of 10", "source": "a corpus", "model": "some model", "turns": 7}
    assert read({**answers, **beside})[0] == "The river is"


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ({"instruction": "Is the number bigger than 10 or not?", "input": "1"}, "input", "two_questions"),
        ({"instruction": "Is the number bigger than 10 or not?", "input": 10}, "input", "two_questions"),
        ({"instruction": "Describe the category of this cat.", "input": "cat"}, "input", "two_questions"),
        ({"instruction": "Choose.\n- cat\n- dog", "input": "cat"}, "input", "two_questions"),
        ({"prompt": "Name a river.", "context": "The Ucayali."}, "context", "unused_column"),
        ({"prompt": "You are a helpful assistant for me.", "context": "You are a helpful"}, "context", "unused_column"),
    ],
)
def test_a_text_inside_another_sentence_does_not_count_as_a_repetition(
    row: dict[str, Any], column: str, reason: str
) -> None:
    assert fault({**row, "chosen": "The Ucayali.", "rejected": "No idea."}) == (column, reason)


def test_a_system_message_is_kept_beside_a_prompt_that_begins_with_the_same_word() -> None:
    assert read(ROW | {"system": "Name", "prompt": "Name it."})[0] == "System: Name\nUser: Name it."
    system = "You are a guide."
    for prompt in (f"{system}\nName a river.", f"System: {system}\nUser: Name a river.", f"{system} Name a river."):
        assert read(ROW | {"system": system, "prompt": prompt})[0] == prompt


@pytest.mark.parametrize(
    "row",
    [
        {
            "prompt": "Context: Peru is a country.\nQ: Where?",
            "context": "Peru is a country.",
            "question": "Where?",
        },
        {"prompt": "[INST] Where? [/INST]", "question": "Where?", "input": " "},
        {"prompt": [SYSTEM, USER], "system": "Be brief.", "question": ROW["prompt"], "context": ROW["prompt"]},
        {"prompt": "Where?", "messages": [{"role": "user", "content": "Where?"}, GOOD], "response": "The Ucayali."},
        {"prompt": "Where?", "generations": ["No idea.", "The Ucayali."], "original_chosen": "The Ucayali."},
    ],
)
def test_a_column_may_repeat_the_question(row: dict[str, Any]) -> None:
    assert read(ROW | row)[0] == dialogue_text(row["prompt"], "prompt")


@pytest.mark.parametrize(
    "column",
    [
        "text", "sentence", "code", "article", "choices", "schema", "instructions", "system_instruction",
        "sys_prompt", "developer", "persona", "background", "functions", "prompt_rejected", "rejected_2", "source_text",
        "image_url", "target_language", "sourceText", "Prompt", "name", "\u6587\u7ae0", "",
    ],
)  # fmt: skip
def test_a_text_under_a_name_that_does_not_describe_the_row_is_refused_by_name(column: str) -> None:
    own = {"axis": "Pace", "scenario": "Go?", "responses": {"Fast": "Yes", "Slow": "No"}}
    for value in ("Peru lies in South America.", ["French"], {"a": "cat"}, [("a", "cat")]):
        assert fault({**ROW, column: value}) == (column, "unused_column")
        assert fault_of(own_row({**own, column: value}, HERE, None)) == (column, "unused_column")
    assert fault({**ROW, "options": ["The Ucayali.", "The sea."]}) == ("options", "unused_column")


@pytest.mark.parametrize("switch", [{"enable_thinking": False}, [("enable_thinking", True)]])
def test_template_arguments_are_refused(switch: Any) -> None:
    assert fault({**ROW, "chat_template_kwargs": switch}) == ("chat_template_kwargs", "unused_column")


@pytest.mark.parametrize(
    "beside",
    [
        {"source": "evol_instruct", "prompt_id": "f0e3", "score_chosen": 8.0, "chosen-model": "x-7b"},
        {"generation_model": ["m", "n"], "status": "tie", "tags": ["a"], "metadata": {"raw": "Some text. More."}},
        {"rationale": "It names one. Good.", "chosen_avg_rating": 4.5, "labelling_model": "m", "rating": [9.0, 3.0]},
        {"model_name": "m", "order": ["chosen", "rejected"], "labelling_prompt": [{"content": "Judge."}]},
        {"helpfulness": 4, "in_train": False, "createdAt": "2024-01-02 03:04:05", "url": "https://example.org/q?id=1"},
        {"category": "Open QA", "domain": "explain_train", "license": "CC BY-SA 4.0", "annotator_id": "w 7"},
    ],
)  # fmt: skip
def test_a_column_may_describe_the_row(beside: dict[str, Any]) -> None:
    assert read({**ROW, **beside}) == read({**beside, "question": ROW["prompt"], **ROW}) == tuple(ROW.values())
    own = {"axis": "Pace", "scenario": "Go?", "responses": {"Fast": "Yes", "Slow": "No"}}
    assert isinstance(own_row({**own, **beside}, HERE, None), AcceptedRow)


def test_shipped_formats_lose_no_column_and_no_key_of_an_option_either() -> None:
    options = [{"text": "Yes", "bias": "Risk-taking"}, {"text": "No", "bias": "Risk-averse"}]
    vcd = {"scenario": "Go?", "preference domain": "Risk Orientation", "scene": "Leisure", "options": options}
    bqd = {
        "question": "Go?\n(A) Yes\n(B) No", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"
    }  # fmt: skip
    for row, parse in ((vcd, vcd_row), (bqd, bqd_row)):
        assert isinstance(parse(row, HERE, "x"), AcceptedRow)
        assert fault_of(parse({**row, "system": "Be brief."}, HERE, "x")) == ("system", "unused_column")
    options[1]["context"] = "It rains."
    assert fault_of(vcd_row(vcd, HERE, None)) == ("options[1].context", "unused_column")
    own = {"axis": "Pace", "scenario": "Go?", "options": [{"text": "Yes", "pole": "Fast", "context": "It rains."}]}
    assert fault_of(own_row(own, HERE, None)) == ("options[0].context", "unused_column")


def test_a_rows_own_axis_overrides_the_axis_for_all_rows() -> None:
    for axis in (None, "Pace"):
        outcome = preference_row({**ROW, "axis": "Risk"}, HERE, axis)
        assert isinstance(outcome, AcceptedRow)
        assert outcome.record.axis == outcome.axis.name == "Risk"
    assert record({**ROW, "axis": None}).axis == "preference"


def test_completions_are_joined_within_their_own_axis() -> None:
    def half(axis: str, pole: str, **more: Any) -> dict[str, Any]:
        return {"axis": axis, "prompt": "Go?", "completion": f"{axis} {pole}", "pole": pole, **more}

    rows = [half(axis, pole) for pole in ("Much", "Little") for axis in ("Risk", "Pace")]
    outcomes = [outcome for _, outcome in join_prompt_completions(((HERE, row) for row in rows), None)]
    assert [outcome.record.axis for outcome in outcomes] == ["Risk", "Pace"]
    mixed = [half("Risk", "Much", pair_id=1), half("Pace", "Little", pair_id=1)]
    ((_, outcome),) = join_prompt_completions(((HERE, row) for row in mixed), None)
    assert fault_of(outcome) == ("axis", "axes_differ")


def test_the_same_rules_hold_for_completions(tmp_path: Path) -> None:
    def joined(**changes: Any) -> Any:
        rows = [{"question": "Sky?", "completion": answer, "pole": answer} | changes for answer in ("Blue", "Red")]
        return [outcome for _, outcome in join_prompt_completions(((HERE, row) for row in rows), None)]

    (outcome,) = joined(system="Be brief.")
    assert outcome.record.scenario == "System: Be brief.\nUser: Sky?"
    assert [o.key_path for o in joined(tools=[{"name": "f"}])] == ["tools", "tools"]
    assert [o.reason for o in joined(completion=[USER, GOOD])] == ["not_an_answer", "not_an_answer"]
    assert joined(completion=[{**GOOD, "tool_calls": [1]}])[0].key_path == "completion[0].tool_calls"


def test_our_own_format_loses_no_question_either() -> None:
    row = {"axis": "Pace", "scenario": "Go?", "responses": {"Fast": "Yes", "Slow": "No"}, "source": "a corpus"}
    assert isinstance(own_row(row, HERE, None), AcceptedRow)
    for column in ("prompt", "question", "system", "context"):
        outcome = own_row({**row, column: "It rains."}, HERE, None)
        assert isinstance(outcome, Reject)
        assert (outcome.key_path, outcome.reason) == (column, "unused_column")


@pytest.mark.parametrize("key", ["tool_calls", "name", "function_call", "reasoning_content", "weight"])
def test_an_unread_key_of_a_message_is_refused_by_name(key: str) -> None:
    for value in ([{"id": "c1"}], "said", 1):
        row = {"prompt": [USER], "chosen": [{**GOOD, key: value}], "rejected": [BAD]}
        assert fault(row) == (f"chosen[0].{key}", "unread_key")
    for value in (None, [], "", {}):
        assert read({"prompt": [USER], "chosen": [{**GOOD, key: value}], "rejected": [BAD]}) == tuple(ROW.values())


def test_messages_that_a_table_stores_as_text_are_refused() -> None:
    assert fault({"chosen": str([USER, GOOD]), "rejected": str([USER, BAD])})[1] == "spelt_messages"
    assert fault({**ROW, "chosen": '[{"role": "assistant", "content": "x"}]'}) == ("chosen", "spelt_messages")


@pytest.mark.parametrize(
    ("common", "chosen", "rejected"),
    [
        ("Human: Hi\n\nAssistant: Yes?\n\nHuman: Sky?\n\nAssistant:", " It is blue.", " It is red."),
        ("\n\nHuman: Sky?\n\nAssistant:", " It is blue.\nAnswer: 1", " It is blue.\nAnswer: 2"),
        ("Question: Sky?\nAnswer:", " It is blue.", " It is red."),
        ("Q: Sky?\nA:", " It is blue.", " It is red."),
        ("### Instruction:\nSay it.\n\n### Response:", "\nIt is blue.", "\nIt is red."),
        ("<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n", "It is blue.", "It is red."),
        ("<|begin_of_text|><|start_header_id|>assistant<|end_header_id|>", "\n\nIt is a", "\n\nIt is b"),
        ("<|user|>\nSky?</s>\n<|assistant|>", "\nIt is blue.", "\nIt is red."),
        ("<start_of_turn>user\nSky?<end_of_turn>\n<start_of_turn>model\n", "It is blue.", "It is red."),
        ("[INST] Sky? [/INST]", " It is blue.", " It is red."),
        ("\u7528\u6237\uff1a\u5929\n\u52a9\u624b\uff1a", "\u84dd\u8272", "\u84dd\u7684"),
        ("**User:** Sky?\n**Assistant:**", " I think so", " I think not"),
        ("### User\nSky?\n### Assistant\n", "I think so", "I think not"),
        ("### Human: Sky?### Assistant:", " I think so", " I think not"),
        ("Be kind. USER: Sky? ASSISTANT: Oh.</s>USER: Sea? ASSISTANT:", " I think so", " I think not"),
        ("<s>Human: Sky?\n</s><s>Assistant:", " I think so", " I think not"),
        ("<\uff5cUser\uff5c>Sky now?<\uff5cAssistant\uff5c>", "I think so", "I think not"),
        ("<|USER_TOKEN|>Sky now?<|END|><|CHATBOT_TOKEN|>", "I think so", "I think not"),
        ("<|turn>user\nSky?<turn|>\n<|turn>model\n", "I think so", "I think not"),
        ("<|start|>user<|message|>Sky?<|start|>assistant<|channel|>final<|message|>", "I think so", "I think not"),
        ("<user>Sky now?</user><assistant>", "I think so", "I think not"),
        ("[|user|]Sky now?\n[|assistant|]", "I think so", "I think not"),
        ("Usuario: Cielo?\nAsistente:", " creo que azul", " creo que rojo"),
        ("\uc0ac\uc6a9\uc790: a\n\uc5b4\uc2dc\uc2a4\ud134\ud2b8:", " I think so", " I think not"),
        (
            "\u0427\u0435\u043b\u043e\u0432\u0435\u043a: a\n\u041f\u043e\u043c\u043e\u0449\u043d\u0438\u043a:",
            " I think so",
            " I think not",
        ),
        ("### Input: x\n### Output: y\n\nHuman: Sky?\n\nAssistant:", " I think so", " I think not"),
        ("### Instruction:\nRewrite:\nUser: hi\nAssistant: hello\n\n### Response:", "\nI think so", "\nI think not"),
        ("H: Sky?\n\nA:", " I think so", " I think not"),
    ],
)
def test_an_implicit_prompt_ends_at_the_last_turn_that_opens_an_answer(common: str, chosen: str, rejected: str) -> None:
    row = {"chosen": common + chosen, "rejected": common + rejected}
    assert read(row) == (common.strip(), chosen.strip(), rejected.strip())


@pytest.mark.parametrize(
    ("common", "chosen", "rejected"),
    [
        ("The sky is ", "blue.", "black."),
        ("Which?\nA: one\nB: two\nI take ", "one", "two"),  # options, not turns
        ("\u5929\u7a7a\u662f", "\u84dd\u8272", "\u7ea2\u8272"),  # Chinese: the sky is / blue, red
        ("\u5929\u7a7a\u662f", "black", "blue"),
        ("Qwen \u662f", "\u84dd", "\u7ea2"),
        ("\u7a7a\u306f", "\u9752\u3044", "\u8d64\u3044"),  # Japanese
        ("\u7a7a", "\u304b\u3099x", "\u304b\u309ax"),  # combining marks belong to the letter before them
        ("\ud558\ub298\uc740 ", "\ud30c\ub797\ub2e4", "\ud30c\ub780"),  # Korean uses spaces
    ],
)
def test_an_implicit_prompt_without_turns_ends_at_the_last_whole_word(common: str, chosen: str, rejected: str) -> None:
    row = {"chosen": common + chosen, "rejected": common + rejected}
    assert read(row) == (common.strip(), chosen, rejected)


@pytest.mark.parametrize(
    "turns",
    [
        "Human: The sky is {}?\n\nAssistant: {}",
        "Human: Go?\n\nAssistant: Yes\n\nHuman: The sky is {}?\n\nAssistant: {}",
        "Q: The sky is {}?\nA: {}",
        "<|im_start|>user\nThe sky is {}?<|im_end|>\n<|im_start|>assistant\n{}",
    ],
)
def test_dialogues_as_text_that_differ_in_the_question_are_refused(turns: str) -> None:
    row = {key: turns.format(key, key) for key in ("chosen", "rejected")}
    assert fault(row) == ("rejected", "questions_differ")


@pytest.mark.parametrize(
    "common",
    [
        "Brukar: hei\nHjelpar: eg trur ",
        "<|u|>hi there<|a|>I think ",
        "Go on.</s>I think ",
        "GPT4 Correct User: hi<|end_of_turn|>GPT4 Correct Assistant: I think ",
        "### Instruction:\nWrite.\n\n### Response:\nUser: hi\nAssistant: I think ",
    ],
)
def test_turns_without_a_known_answering_side_are_refused(common: str) -> None:
    assert fault({"chosen": f"{common}so", "rejected": f"{common}not"}) == ("prompt", "unclear_turns")


@pytest.mark.parametrize(
    "turns",
    [
        "Human: {}\n\nAssistant: {}",
        "Q: {}\nA: {}",
        "USER: {} ASSISTANT: {}",
        "Human: Hi\n\nAssistant: Hi\n\nHuman: {}\n\nAssistant: {}",
    ],
)
def test_a_prompt_beside_dialogues_as_text_that_repeat_it_is_refused(turns: str) -> None:
    for prompt in ("Sky?", [{"role": "user", "content": "Sky?"}], turns.format("Sky?", "")):
        row = {"prompt": prompt, "chosen": turns.format("Sky?", "blue"), "rejected": turns.format("Sky?", "red")}
        assert fault(row) == ("prompt", "prompt_repeated")
    dialogue = {"prompt": "Write a dialogue.", "chosen": "User: Hi\nBot: Hi.", "rejected": "User: Hi\nBot: Ho."}
    assert read(dialogue) == tuple(dialogue.values())


@pytest.mark.parametrize("run", ["\n", " ", "# ", "*", "<a>", "A:", "User>"])
def test_a_long_run_of_marks_is_parsed_in_linear_time(run: str) -> None:
    start = time.perf_counter()
    preference_row({"chosen": run * 20_000 + "x a", "rejected": run * 20_000 + "x b"}, HERE, None)
    assert time.perf_counter() - start < 2  # takes some hundredths; quadratic time would be many seconds


any_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from([USER, GOOD, "Name a sea."]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
columns = st.sampled_from(["prompt", "question", "system", "context", "chosen", "rejected", "other"])


@settings(max_examples=50, deadline=None)
@given(changes=st.dictionaries(columns, any_value, max_size=4), dialogues=st.booleans())
def test_no_row_crashes_a_parser(changes: dict[str, Any], dialogues: bool) -> None:
    answers = {"chosen": [USER, GOOD], "rejected": [USER, BAD]} if dialogues else ROW
    assert isinstance(preference_row({**answers, **changes}, HERE, None), AcceptedRow | Reject)
