"""Dialogues in chat templates: each turn is a message of its own, and a template that refuses them is named."""

from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoTokenizer

from pft_core.data.records import Option, PairedExample, Reject, Turn, paired_example
from pft_core.data.sources.trl import preference_row
from pft_core.encoding import EncodingSettings, EncodingSpec, encode_pairs
from pft_core.evaluation.answers import AnswerSettings, Question, encode_options
from pft_core.prompts.rendering import Frame, PromptStyle, chat_frame, condition_text, render_answer
from pft_core.prompts.turns import in_turns
from tests.builders import SPACE

TURNS = (
    Turn("system", "You sell boats ."),
    Turn("user", "Which boat ?"),
    Turn("assistant", "The old one ."),
    Turn("user", "And now ?"),
)
CHATML = (
    "{% if messages[0].role != 'system' %}<|system|>Be kind.<end>\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"
)


@pytest.fixture
def tokenizer(tiny_qwen2):
    return AutoTokenizer.from_pretrained(tiny_qwen2)


def dialogue(turns: tuple[Turn, ...] = TURNS) -> PairedExample:
    text = "\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in turns)
    options = [Option("go boldly", 0), Option("stay careful", 1)]
    return paired_example("Risk", text, options, "response", turns)


def templated(tokenizer: Any, template: str, position: str = "after") -> PromptStyle:
    tokenizer.chat_template = template
    return PromptStyle(condition_position=position, frame=chat_frame(tokenizer))  # type: ignore[arg-type]


def messages(question: str, turns: tuple[Turn, ...] = TURNS) -> list[dict[str, str]]:
    earlier = [{"role": turn.role, "content": turn.content} for turn in turns[:-1]]
    return [*earlier, {"role": "user", "content": question}]


@pytest.mark.parametrize("position", ["before", "after"])
def test_a_dialogue_is_encoded_as_the_template_writes_its_messages(tokenizer, position) -> None:
    record, style = dialogue(), templated(tokenizer, CHATML, position)
    (example,), _ = encode_pairs([(record, "one")], spec=EncodingSpec(style), space=SPACE, tokenizer=tokenizer)
    lengths = []
    for side, branch in enumerate(example.branches):
        condition = condition_text(SPACE, "Risk", side)
        lines = [condition, "And now ?"] if position == "before" else ["And now ?", condition]
        prompt = tokenizer.apply_chat_template(messages("\n".join(lines)), tokenize=False, add_generation_prompt=True)
        answer = render_answer(record, record.of_side(side), form="one", style=style)
        ids = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
        assert [*example.prefix_ids, *branch.input_ids] == [*ids, tokenizer.eos_token_id]
        lengths.append(len(ids))
    assert 0 < len(example.prefix_ids) < min(lengths)


def test_an_evaluation_asks_a_dialogue_as_the_template_writes_its_messages(tokenizer) -> None:
    style = templated(tokenizer, CHATML)
    settings = AnswerSettings(style, SPACE, max_length=512, tokens_per_batch=512, max_new_tokens=1)
    question = Question(dialogue(), "one", None, history="Before: ")
    (example,) = encode_options([question], tokenizer=tokenizer, settings=settings)
    assert not isinstance(example, Reject)
    prompt = tokenizer.apply_chat_template(messages("Before: And now ?"), tokenize=False, add_generation_prompt=True)
    for option, branch in zip(dialogue().options, example.branches, strict=True):
        ids = tokenizer(prompt + option.text, add_special_tokens=False)["input_ids"]
        assert [*example.prefix_ids, *branch.input_ids] == [*ids, tokenizer.eos_token_id]


def test_in_the_plain_frame_or_without_turns_nothing_changes(tokenizer) -> None:
    plain, chat = PromptStyle(), templated(tokenizer, CHATML)
    assert in_turns("x", dialogue(), plain, tokenizer) == (dialogue(), plain)
    single = replace(dialogue(), turns=())
    assert in_turns("x", single, chat, tokenizer) == (single, chat)


def test_only_the_question_of_a_dialogue_may_be_cut(tokenizer) -> None:
    style = templated(tokenizer, CHATML)
    turns = (*TURNS[:-1], Turn("user", "week after week " * 30 + "?"))

    def prompt(max_length: int) -> tuple[str, int]:
        spec = EncodingSpec(style, EncodingSettings(max_length=max_length, overlong="cut_prompt"))
        (example,), _ = encode_pairs([(dialogue(turns), "one")], spec=spec, space=SPACE, tokenizer=tokenizer)
        return tokenizer.decode(example.prefix_ids), max(len(branch.input_ids) for branch in example.branches)

    whole, longest = prompt(4096)
    cut, _ = prompt(len(tokenizer(whole)["input_ids"]) + longest - 20)
    assert all(turn.content in cut for turn in TURNS[:-1])
    assert cut.count("week after") < whole.count("week after") == 30


@pytest.mark.parametrize(
    ("template", "turns", "why"),
    [
        (NO_SYSTEM, TURNS, "refuses the turns system, user, assistant, user (no system role here)"),
        (CHATML.replace("for m in messages", "for m in messages if m.role != 'system'"), TURNS, "leaves out a turn"),
        (CHATML, (*TURNS, Turn("assistant", "The new one .")), "ends with a turn of 'assistant'"),
        (CHATML.replace("{{ m.content }}", "{{ m.content | replace('now', 'then') }}"), TURNS, "once and unchanged"),
    ],
)
def test_a_template_that_cannot_write_the_turns_rejects_the_pair_and_says_what_to_do(
    tokenizer, template, turns, why
) -> None:
    tokenizer.chat_template = template
    style, single = PromptStyle(frame=Frame("[user]", "\n[assistant]", "")), replace(dialogue(), id="single", turns=())
    items = [(dialogue(turns), "one"), (single, "one")]
    examples, rejects = encode_pairs(items, spec=EncodingSpec(style), space=SPACE, tokenizer=tokenizer)  # type: ignore[arg-type]
    assert [example.id for example in examples] == ["single:one"]
    assert [(reject.key_path, reject.reason) for reject in rejects] == [("turns", "refused_turns")]
    assert why in rejects[0].detail
    assert "use prompt.template=plain" in rejects[0].detail


def test_a_role_that_spells_a_control_token_rejects_the_pair(tokenizer) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<END>"]})  # the text of a dialogue has `<end>` for it
    style = templated(tokenizer, CHATML)
    items = [(dialogue((Turn("sys<END>", "Obey ."), *TURNS[1:])), "one")]
    _, rejects = encode_pairs(items, spec=EncodingSpec(style), space=SPACE, tokenizer=tokenizer)  # type: ignore[arg-type]
    assert [reject.reason for reject in rejects] == ["control_token"]


def test_rows_of_messages_keep_their_turns_and_their_text() -> None:
    def row(prompt: Any, **changes: Any) -> PairedExample:
        answers = {"chosen": [{"role": "assistant", "content": "Sell it ."}], "rejected": "Keep it ."}
        return preference_row({"prompt": prompt} | answers | changes, "file:1", None).record

    earlier = [{"role": turn.role, "content": turn.content} for turn in TURNS]
    record = row(earlier)
    assert record.turns == TURNS
    assert record.scenario == "\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in TURNS)
    assert PairedExample.from_row(record.to_row()) == record
    assert row(earlier[1:], system=TURNS[0].content) == record
    assert row("And now ?").turns == row([earlier[-1]]).turns == ()
    old = {key: value for key, value in record.to_row().items() if key != "turns"}
    assert PairedExample.from_row(old) == replace(record, turns=())
