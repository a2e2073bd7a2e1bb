"""Views: how a record becomes a BranchedExample, with one branch for each prompt and answer of the view."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pft_core.data import SIDES, Form, PairedExample, PreferenceSpace, Reject
from pft_core.encoding.control_tokens import reject_control_tokens
from pft_core.encoding.examples import BranchedExample, branched_example, without_first_label
from pft_core.encoding.overlong import fit_length
from pft_core.encoding.settings import EncodingSettings
from pft_core.encoding.tokens import TokenizedAnswer, tokenize
from pft_core.prompts import PromptStyle, condition_text, render_answer, render_prompt, target_options

View = Literal["pft", "preference"]  # what the branches of a pair are: its right answers, or its right and wrong ones

# Each branch of a view is (side of the prompt, side of the answer). In "preference", branches alternate between chosen
# and rejected.
VIEWS: dict[View, tuple[tuple[int, int], ...]] = {
    "pft": ((0, 0), (1, 1)),
    "preference": ((0, 0), (0, 1), (1, 1), (1, 0)),
}


@dataclass(frozen=True)
class EncodingSpec:
    """Everything that decides token ids and masks, besides the tokenizer and the records."""

    style: PromptStyle
    encoding: EncodingSettings = field(default_factory=EncodingSettings)
    view: View = "pft"


def encode_pairs(
    items: Sequence[tuple[PairedExample, Form]], *, spec: EncodingSpec, space: PreferenceSpace, tokenizer: Any
) -> tuple[list[BranchedExample], list[Reject]]:
    """Encode items in the spec's view: each becomes a prefix, and a branch for each prompt and answer of the view.

    An item with a branch longer than `max_length` is rejected, or loses tokens from the start of the scenario (never of
    the answer, and the same tokens in every branch). An item whose texts contain a control token is rejected. Example
    ids are `record id:form`.
    """
    faults = [
        reject_control_tokens(f"{record.id}:{form}", record, tokenizer, beside=_stated(record.axis, spec.style, space))
        for record, form in items
    ]
    examples: list[BranchedExample] = []
    rejects = [reject for reject in faults if reject]
    items = [item for item, reject in zip(items, faults, strict=True) if reject is None]
    texts, prompt_lengths, spans = [], [], []
    for record, form in items:
        for prompt_side, answer_side in VIEWS[spec.view]:
            prompt = render_prompt(record, side=prompt_side, form=form, style=spec.style, space=space)
            target = target_options(record, side=answer_side, form=form)
            answer = render_answer(record, target, form=form, style=spec.style)
            texts.append(prompt.text + answer)
            prompt_lengths.append(len(prompt.text))
            spans.append(prompt.scenario_span)
    rows = tokenize(texts, prompt_lengths, spans, tokenizer) if texts else []
    count = len(VIEWS[spec.view])
    for i, (record, form) in enumerate(items):
        axis = space.axes.index(space.axis(record.axis))
        outcome = _tree(f"{record.id}:{form}", rows[count * i : count * (i + 1)], spec, axis)
        if isinstance(outcome, BranchedExample):
            examples.append(outcome)
        else:
            rejects.append(outcome)
    return examples, rejects


def _stated(axis: str, style: PromptStyle, space: PreferenceSpace) -> list[str]:
    return [condition_text(space, axis, side, condition=style.condition) for side in SIDES]


def _tree(example_id: str, rows: Sequence[TokenizedAnswer], spec: EncodingSpec, axis: int) -> BranchedExample | Reject:
    fitting = fit_length(example_id, rows, spec.encoding)
    if isinstance(fitting, Reject):
        return fitting
    prompts = [row.ids[: row.answer_start] for row in fitting]
    answers = [row.ids[row.answer_start :] for row in fitting]
    sides = [prompt_side for prompt_side, _ in VIEWS[spec.view]]
    example = replace(branched_example(example_id, prompts, answers, sides), axis=axis)
    if spec.encoding.mask == "paper":
        return replace(example, branches=tuple(without_first_label(b) for b in example.branches))
    return example
