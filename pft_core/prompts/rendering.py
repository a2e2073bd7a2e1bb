"""The one renderer, shared by training, evaluation and serving.

A prompt is text with a scenario inside; an answer is the text that follows it. In the `plain` frame the prompt ends
with "Answer:" and the answer starts with a space, in a chat frame it follows the template's own opening: with both,
tokenising prompt and answer together or apart gives the same tokens, so what was trained is what is served.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from itertools import product, takewhile
from typing import Any, Literal

from pft_core.data import LETTERS, Form, Option, PairedExample, PreferenceSpace
from pft_core.errors import UserError
from pft_core.prompts.chat_template import MOMENT, cut_at_message, render_chat

ConditionPosition = Literal["before", "after"]

AnswerStyle = Literal["letter", "option"]

ConditionStyle = Literal["description", "control_token"]

# Two moments that begin and end differently however they are written, seconds since 1970 among them.
_MOMENTS = (datetime(2001, 2, 3, 4, 5, 6), datetime(1989, 11, 29, 17, 38, 47))


@dataclass(frozen=True)
class Frame:
    """The text around a user's message: `plain`, or a tokenizer's chat template cut at the message."""

    opening: str = ""
    closing: str = "\nAnswer:"
    answer_lead: str = " "


@dataclass(frozen=True)
class PromptStyle:
    """Everything that decides how a record becomes text; its digest travels with a trained policy.

    `condition_position`: `before` the scenario is the paper's prompt; `after` lets both poles share the scenario.
    `answer`: reply with the letter as JSON, or with the option's whole text.
    `condition`: state the preference in words, or as a control token (Controllable Preference Optimization).
    """

    condition_position: ConditionPosition = "before"
    answer: AnswerStyle = "letter"
    frame: Frame = Frame()
    condition: ConditionStyle = "description"

    def to_dict(self) -> dict[str, Any]:
        """Return the style as JSON holds it."""
        return asdict(self)

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> "PromptStyle":
        """Return the style that `to_dict` wrote."""
        return PromptStyle(raw["condition_position"], raw["answer"], Frame(**raw["frame"]), raw["condition"])


@dataclass(frozen=True)
class Prompt:
    """Prompt text and the span of characters (start, end) of the scenario, the only part a length policy may cut."""

    text: str
    scenario_span: tuple[int, int]


def chat_frame(tokenizer: Any, *, at: datetime = MOMENT) -> Frame:
    """Cut the tokenizer's chat template (a transformers tokenizer) at the user's message.

    at: what a template that asks for the time is told; the same one, wherever a frame is made to ask a policy in.
    Raises UserError for a template that is not a text around a message.
    """
    render = partial(render_chat, tokenizer, at=at)
    return Frame(*cut_at_message(render, tokenizer=tokenizer.name_or_path), answer_lead="")


def is_frame_of(frame: Frame, tokenizer: Any) -> bool:
    """Whether a policy's frame is the tokenizer's chat template, whatever the time was when it was cut.

    Templates are compared, not renderings: earlier versions told a template the time of the day. What is told now is
    compared first: the time may decide about whole words.
    """
    try:
        if frame == chat_frame(tokenizer):
            return True
        first, second = (chat_frame(tokenizer, at=at) for at in _MOMENTS)
    except UserError:  # it has no template, or one that frames nothing
        return False
    return frame.answer_lead == first.answer_lead and all(
        _is_between(*texts)
        for texts in (
            (frame.opening, first.opening, second.opening),
            (frame.closing, first.closing, second.closing),
        )
    )


def _is_between(text: str, first: str, second: str) -> bool:
    """Whether a text is one of these, or begins and ends as both do, with a time of its own between."""
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
    """Return the line that states a preference; empty when there is none (side None)."""
    if side is None:
        return ""
    pole = space.axis(axis).poles[side]
    if condition == "control_token":
        return f"<{axis}: {pole.name}>"
    return f"Preference ({axis}): {pole.name}. {pole.description}".rstrip()


def instruction_text(record: PairedExample, style: PromptStyle, form: Form) -> str:
    """Return the line that says what kind of answer is asked for; empty for free responses."""
    if record.presentation == "response":
        return ""
    if style.answer == "option":
        return "Give every option that fits." if form == "all" else "Give the option that fits."
    if form == "all":
        return 'Choose every option that fits. Reply as {"choices": ["<letter>", ...]}.'
    return 'Choose the option that fits. Reply as {"choice": "<letter>"}.'


def options_text(record: PairedExample) -> str:
    """Return the lettered options, one a line; empty for free responses."""
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
    """Render the prompt under the pole `side` of the record's axis, or with no condition (None).

    others: axis and side of further preferences, a line each below it.
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
    """Return a free message with the lines that state preferences, where the style puts them.

    Inside the style's frame it is `render_prompt` of a record of free responses whose scenario is the message.
    """
    lines = [line for line in conditions if line]
    return "\n".join([*lines, message] if style.condition_position == "before" else [message, *lines])


def render_answer(record: PairedExample, chosen: Sequence[int], *, form: Form, style: PromptStyle) -> str:
    """Render the answer that chooses these options (indices in shown order)."""
    if record.presentation == "response" or style.answer == "option":
        return style.frame.answer_lead + "\n".join(record.options[i].text for i in chosen)
    letters = [LETTERS[i] for i in chosen]
    reply = {"choices": letters} if form == "all" else {"choice": letters[0]}
    return style.frame.answer_lead + json.dumps(reply)


def target_options(record: PairedExample, *, side: int, form: Form) -> tuple[int, ...]:
    """Return the options a demonstration of that pole gives: all of them, or one picked by a hash of the id."""
    options = record.of_side(side)
    if form == "all":
        return options
    pick = int(hashlib.sha256(f"{record.id}:target:{side}".encode()).hexdigest(), 16) % len(options)
    return (options[pick],)


def template_digest(style: PromptStyle, space: PreferenceSpace) -> str:
    """Return 16 hex digits over style, wording and rendered samples: two policies with equal digests were asked in the
    same words, by the same renderer."""
    content = json.dumps([style.to_dict(), space.to_dict(), _samples(style, space)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _samples(style: PromptStyle, space: PreferenceSpace) -> list[str]:
    """Render one record of either presentation in every way: a renderer that words anything else shows here."""
    texts = []
    for axis, presentation, form in product(space.axes[:1], ("choice", "response"), ("one", "all")):
        options = (Option("Yes.", 0), Option("No.", 1))
        record = PairedExample("sample", axis.name, "What now?", options, presentation)  # type: ignore[arg-type]
        for side in (None, 0, 1):
            texts.append(render_prompt(record, side=side, form=form, style=style, space=space).text)  # type: ignore[arg-type]
        texts.append(render_answer(record, (0, 1), form=form, style=style))  # type: ignore[arg-type]
    return texts
