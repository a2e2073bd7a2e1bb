"""The renderer of prompts and answers, shared by training, evaluation and serving.

A prompt is text with a scenario inside; an answer is the text that follows it. In the `plain` frame, the prompt ends
with "Answer:" and the answer starts with a space; in a chat frame, the answer follows the template's own opening of a
reply. In both, prompt and answer tokenized together or separately give the same tokens, so that the served prompt is
the trained one.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from itertools import product, takewhile
from typing import Any, Literal

from pft_core.data import LETTERS, Form, Option, PairedExample, PreferenceSpace, Presentation
from pft_core.errors import UserError
from pft_core.prompts.chat_template import MOMENT, cut_at_message, render_chat

ConditionPosition = Literal["before", "after"]

AnswerStyle = Literal["letter", "option"]

ConditionStyle = Literal["description", "control_token"]

# Two times whose texts begin and end differently in any format, even as seconds since 1970.
_OTHER_TIMES = (datetime(2001, 2, 3, 4, 5, 6), datetime(1989, 11, 29, 17, 38, 47))


@dataclass(frozen=True)
class Frame:
    """The text around a user's message: the `plain` frame, or a tokenizer's chat template cut at the message."""

    opening: str = ""
    closing: str = "\nAnswer:"
    answer_lead: str = " "


@dataclass(frozen=True)
class PromptStyle:
    """Everything that decides how a record becomes text. Its digest is stored with a trained policy.

    condition_position: `before` the scenario is the paper's prompt; `after` lets both poles share the scenario's
    tokens. answer: the letter as JSON, or the option's whole text. condition: the preference in words, or as a control
    token (Controllable Preference Optimization).
    """

    condition_position: ConditionPosition = "before"
    answer: AnswerStyle = "letter"
    frame: Frame = Frame()
    condition: ConditionStyle = "description"

    def to_dict(self) -> dict[str, Any]:
        """Return the style as JSON-like content."""
        return asdict(self)

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> "PromptStyle":
        """Build a style from the content that `to_dict` returns."""
        return PromptStyle(raw["condition_position"], raw["answer"], Frame(**raw["frame"]), raw["condition"])


@dataclass(frozen=True)
class Prompt:
    """A prompt's text, and the span of characters (start, end) of its scenario, the only part that may be cut."""

    text: str
    scenario_span: tuple[int, int]


def chat_frame(tokenizer: Any, *, at: datetime = MOMENT) -> Frame:
    """Cut the chat template of a transformers tokenizer at the user's message.

    at: the time for a template that reads the clock; every frame for a policy's prompts uses the default.
    Raises UserError if the template does not write fixed text around a message.
    """
    render = partial(render_chat, tokenizer, at=at)
    return Frame(*cut_at_message(render, tokenizer=tokenizer.name_or_path), answer_lead="")


def is_frame_of(frame: Frame, tokenizer: Any) -> bool:
    """Return whether a policy's frame is the tokenizer's chat template, cut at any time.

    Earlier versions gave a template the current time, so a frame also counts if it differs only in the time. The frame
    at today's fixed time is compared first, as the time may decide whole words.
    """
    try:
        if frame == chat_frame(tokenizer):
            return True
        first, second = (chat_frame(tokenizer, at=at) for at in _OTHER_TIMES)
    except UserError:  # there is no usable template
        return False
    return frame.answer_lead == first.answer_lead and all(
        _is_between(*texts)
        for texts in (
            (frame.opening, first.opening, second.opening),
            (frame.closing, first.closing, second.closing),
        )
    )


def _is_between(text: str, first: str, second: str) -> bool:
    """Return whether a text begins and ends as these two texts do, with its own time in the middle."""
    if first == second:
        return text == first
    begin = _common_prefix(first, second)
    end = _common_prefix(first[len(begin) :][::-1], second[len(begin) :][::-1])[::-1]
    return len(text) >= len(begin) + len(end) and text.startswith(begin) and text.endswith(end)


def _common_prefix(first: str, second: str) -> str:
    return "".join(a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def condition_text(
    space: PreferenceSpace, axis: str, side: int | None, *, condition: ConditionStyle = "description"
) -> str:
    """Return the line that states a preference; an empty string if there is none (side None)."""
    if side is None:
        return ""
    pole = space.axis(axis).poles[side]
    if condition == "control_token":
        return f"<{axis}: {pole.name}>"
    return f"Preference ({axis}): {pole.name}. {pole.description}".rstrip()


def instruction_text(record: PairedExample, style: PromptStyle, form: Form) -> str:
    """Return the line that asks for a kind of answer; an empty string for free responses."""
    if record.presentation == "response":
        return ""
    if style.answer == "option":
        return "Give every option that fits." if form == "all" else "Give the option that fits."
    if form == "all":
        return 'Choose every option that fits. Reply as {"choices": ["<letter>", ...]}.'
    return 'Choose the option that fits. Reply as {"choice": "<letter>"}.'


def options_text(record: PairedExample) -> str:
    """Return the lettered options, one per line; an empty string for free responses."""
    if record.presentation == "response":
        return ""
    return "\n".join(f"({LETTERS[i]}) {option.text}" for i, option in enumerate(record.options))


def render_prompt(
    record: PairedExample,
    *,
    side: int | None,
    form: Form,
    style: PromptStyle,
    space: PreferenceSpace,
    others: Sequence[tuple[str, int]] = (),
) -> Prompt:
    """Render the prompt under one pole (`side`) of the record's axis, or without a condition (None).

    others: the axis and side of further preferences, which are stated below it, one per line.
    """
    stated = [(record.axis, side), *others]
    lines = [condition_text(space, axis, pole, condition=style.condition) for axis, pole in stated]
    condition = "\n".join(line for line in lines if line)
    head = condition if style.condition_position == "before" else ""
    tail = condition if style.condition_position == "after" else ""
    opening = style.frame.opening + (head + "\n" if head else "")
    after = [part for part in (options_text(record), tail, instruction_text(record, style, form)) if part]
    text = opening + "\n".join([record.scenario, *after]) + style.frame.closing
    return Prompt(text, (len(opening), len(opening) + len(record.scenario)))


def state_in_message(message: str, conditions: Sequence[str], style: PromptStyle) -> str:
    """Return a free message with the lines that state preferences, in the position of the style.

    Inside the style's frame, this equals `render_prompt` for a record of free responses with the message as scenario.
    """
    lines = [line for line in conditions if line]
    return "\n".join([*lines, message] if style.condition_position == "before" else [message, *lines])


def render_answer(record: PairedExample, chosen: Sequence[int], *, form: Form, style: PromptStyle) -> str:
    """Render the answer that chooses these options (indices in the shown order)."""
    if record.presentation == "response" or style.answer == "option":
        return style.frame.answer_lead + "\n".join(record.options[i].text for i in chosen)
    letters = [LETTERS[i] for i in chosen]
    reply = {"choices": letters} if form == "all" else {"choice": letters[0]}
    return style.frame.answer_lead + json.dumps(reply)


def target_options(record: PairedExample, *, side: int, form: Form) -> tuple[int, ...]:
    """Return the options that a demonstration of this pole gives: all of them, or one picked by a hash of the id."""
    options = record.of_side(side)
    if form == "all":
        return options
    pick = int(hashlib.sha256(f"{record.id}:target:{side}".encode()).hexdigest(), 16) % len(options)
    return (options[pick],)


def template_digest(style: PromptStyle, space: PreferenceSpace) -> str:
    """Return 16 hex digits over the style, the wording and rendered samples.

    Two policies with equal digests were trained with the same prompt wording and the same renderer.
    """
    content = json.dumps([style.to_dict(), space.to_dict(), _samples(style, space)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _samples(style: PromptStyle, space: PreferenceSpace) -> list[str]:
    """Render a record of each presentation in every way, so that any change of the renderer changes the digest."""
    texts = []
    presentations: tuple[Presentation, ...] = ("choice", "response")
    forms: tuple[Form, ...] = ("one", "all")
    for axis, presentation, form in product(space.axes[:1], presentations, forms):
        options = (Option("Yes.", 0), Option("No.", 1))
        record = PairedExample("sample", axis.name, "What now?", options, presentation)
        for side in (None, 0, 1):
            texts.append(render_prompt(record, side=side, form=form, style=style, space=space).text)
        texts.append(render_answer(record, (0, 1), form=form, style=style))
    return texts
