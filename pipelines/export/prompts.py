"""The prompts of a model card: the exact text for each pole of an axis, and the layout for any scenario."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pft_core.data import SIDES, Option, PairedExample, PreferenceSpace, Presentation
from pft_core.encoding import tokenize_prompts
from pft_core.policies import ModelRef
from pft_core.prompts import condition_text, render_answer, render_prompt
from pipelines.reporting import Example

# A made-up item: no row of anybody's data becomes public in a card.
SCENARIO = "A friend offers you the last ticket to a concert tonight. You have an early appointment tomorrow."
OPTIONS = ("Take the ticket and go.", "Thank them and stay at home.")


@dataclass(frozen=True)
class CardPrompts:
    """The prompts of a card. texts: by pole of `axis`. chosen: the option that the policy chose, by pole, if known.

    layout: the prompt with names in braces for what changes. add_special_tokens: the tokenizer's argument for the
    tokens of the training. is_exact: whether the prompts give these tokens.
    """

    axis: str
    texts: dict[str, str]
    answers: list[str]
    chosen: dict[str, str]
    layout: str
    conditions: list[tuple[str, str, str]]
    add_special_tokens: bool
    is_exact: bool


def card_prompts(
    ref: ModelRef, tokenizer: Any, *, presentation: Presentation | None, example: Example | None
) -> CardPrompts:
    """Render the prompts of a policy for an example item of its evaluation, or for a made-up one."""
    record = _record_of(ref.space, example, presentation or "choice")
    axis = ref.space.axis(record.axis)
    texts = [_prompt(record, side, ref) for side in SIDES]
    way = tokenized_as(texts, tokenizer)
    lead, add_special_tokens = way or ("", True)
    return CardPrompts(
        axis.name,
        {pole.name: lead + text for pole, text in zip(axis.poles, texts, strict=True)},
        [render_answer(record, (i,), form="one", style=ref.style) for i in range(len(record.options))],
        example["chosen"] if example else {},
        lead + _layout(ref, axis.name, record.presentation),
        [(a.name, a.poles[side].name, _condition(ref, a.name, side)) for a in ref.space.axes for side in SIDES],
        add_special_tokens,
        is_exact=way is not None,
    )


def _record_of(space: PreferenceSpace, example: Example | None, presentation: Presentation) -> PairedExample:
    if example is None:
        options = tuple(Option(text, side) for side, text in enumerate(OPTIONS))
        return PairedExample("", space.axes[0].name, SCENARIO, options, presentation)
    poles = [pole.name for pole in space.axis(example["axis"]).poles]
    options = tuple(Option(option["text"], poles.index(option["pole"])) for option in example["options"])
    return PairedExample("", example["axis"], example["scenario"], options, presentation)


def _prompt(record: PairedExample, side: int, ref: ModelRef) -> str:
    return render_prompt(record, side=side, form="one", style=ref.style, space=ref.space).text


def _condition(ref: ModelRef, axis: str, side: int) -> str:
    return condition_text(ref.space, axis, side, condition=ref.style.condition)


def _layout(ref: ModelRef, axis: str, presentation: Presentation) -> str:
    """Return the prompt with {condition}, {scenario} and {option} in place of these texts."""
    options = tuple(Option(f"{{{name} option}}", side) for side, name in enumerate(("first", "second")))
    text = _prompt(PairedExample("", axis, "{scenario}", options, presentation), 0, ref)
    return text.replace(_condition(ref, axis, 0), "{condition}", 1)


def tokenized_as(texts: Sequence[str], tokenizer: Any) -> tuple[str, bool] | None:
    """Return what to write before a prompt, and `add_special_tokens`, for the tokens of the training; None if no way
    gives them: a tokenizer may add BOS itself, add more than BOS, or find BOS in the prompt."""
    trained = tokenize_prompts(texts, tokenizer)
    for lead, add in (("", True), ("", False), (tokenizer.bos_token or "", False)):
        rows = [tokenizer(lead + text, add_special_tokens=add)["input_ids"] for text in texts]
        if all(np.array_equal(row, ids) for row, ids in zip(rows, trained, strict=True)):
            return lead, add
    return None
