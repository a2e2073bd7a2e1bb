"""TRL's preference and prompt-completion formats, standard (text) or conversational (messages).

`chosen` shows the first pole of the axis, `rejected` the second. The axis is the row's own `axis`, else the one that is
set for all rows, else `preference`.
A prompt-completion row holds one answer: two rows with the same `pair_id` (without one: the same prompt) and different
poles make a record. Any column that may be part of the question is either read or makes the row a Reject.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pft_core.data.records import Option, Reject
from pft_core.data.sources.checks import (
    AcceptedRow,
    Outcome,
    RowFault,
    accept,
    axis_between,
    axis_name,
    row_parser,
    shipped_axes,
    side_of,
    text_of,
    texts_in,
    value_of,
)
from pft_core.data.sources.dialogues import (
    answer_text,
    dialogue_text,
    last_answer_start,
    num_common,
    prompt_length,
    roles_of,
)
from pft_core.data.sources.questions import is_contained, is_transcript_of, question_of, refuse_unused, with_system

DEFAULT_AXIS = "preference"
_PREFERENCE_POLES = ("chosen", "rejected")


def is_prompt_completion(row: Any) -> bool:
    """Return whether a row is in the prompt-completion format, judged by its columns as TRL does."""
    return isinstance(row, dict) and "completion" in row and "chosen" not in row


@row_parser
def preference_row(row: dict[str, Any], axis: str | None) -> AcceptedRow:
    """The record of a row `{"prompt", "chosen", "rejected"}`; a missing prompt is the common start of the answers.

    axis: the axis of a row that names none.
    """
    name = axis_name(row, "axis", default=axis or DEFAULT_AXIS)
    preference = shipped_axes().get(name) or axis_between(name, _PREFERENCE_POLES, None, "chosen")
    chosen, rejected = (value_of(row, key)[0] for key in _PREFERENCE_POLES)
    key, question = question_of(row)
    prompt, chosen, rejected = _split(question, chosen, rejected, key)
    prompt = with_system(row, prompt)
    scenario, answers = dialogue_text(prompt, key), [answer_text(chosen, "chosen"), answer_text(rejected, "rejected")]
    refuse_unused(row, prompt, [chosen, rejected], used=(key, "axis", *_PREFERENCE_POLES))
    _refuse_repeated(prompt, scenario, answers, key)
    options = [Option(answer, side) for side, answer in enumerate(answers)]
    return accept(preference, scenario, options, "rejected", "response")


def _split(question: Any, chosen: Any, rejected: Any, key: str) -> tuple[Any, Any, Any]:
    """Return prompt, chosen and rejected without overlap. question: the row's own prompt, or None."""
    if question is None:
        return split_common_prompt(chosen, rejected)
    if isinstance(question, str) and _is_dialogue(chosen) and _is_dialogue(rejected):
        return _split_dialogues(question, chosen, rejected, key)
    if isinstance(question, list) and all(_is_dialogue(answer) for answer in (chosen, rejected)):
        length = len(question)
        if question and chosen[:length] == question == rejected[:length]:
            return question, chosen[length:], rejected[length:]
    return question, chosen, rejected


def _split_dialogues(question: str, chosen: list[Any], rejected: list[Any], key: str) -> tuple[Any, Any, Any]:
    """Split whole dialogues beside a text prompt. As in TRL, the dialogues count; they have to contain the prompt."""
    prompt = chosen[: num_common(chosen, rejected)]
    roles = roles_of(prompt)
    if not roles or roles[0] in ("assistant", "gpt"):
        return question, chosen, rejected
    answers = chosen[len(prompt) :], rejected[len(prompt) :]
    if "user" not in roles and "human" not in roles:
        return [*prompt, {"role": "user", "content": question}], *answers
    if not is_contained(question, texts_in(prompt)) and not is_transcript_of(prompt, question):
        raise RowFault(key, "prompt_differs", "the dialogues of chosen and rejected do not begin with this prompt")
    return prompt, *answers


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, list)


def _refuse_repeated(prompt: Any, scenario: str, answers: Sequence[str], key: str) -> None:
    """Raise RowFault if all answers begin with the prompt, or one is a dialogue as text that asks it again.

    A prompt of one word does not count, as answers may begin with it by chance.
    """
    repeated = len(scenario.split()) > 1 and all(answer.startswith(scenario) for answer in answers)
    if repeated or any(_asks_again(answer, texts_in(prompt)) for answer in answers):
        raise RowFault(key, "prompt_repeated", "the answers repeat the prompt: keep it in one place")


def _asks_again(answer: str, prompt: Sequence[str]) -> bool:
    question, whole = ("".join(f" {word}" for word in text.split()) + " " for text in (prompt[-1], answer))
    return question in whole and question in " " + " ".join(answer[: last_answer_start(answer)].split()) + " "


def split_common_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Split two texts or two lists of messages into their common prompt and the two answers. Raises RowFault."""
    if type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
        raise RowFault("rejected", "wrong_type", "chosen and rejected must both be text or both be messages")
    length = prompt_length(chosen, rejected) if isinstance(chosen, str) else num_common(chosen, rejected)
    if not length:
        raise RowFault("prompt", "missing_key", "no prompt, and chosen and rejected have no common start")
    return chosen[:length], chosen[length:], rejected[length:]


@dataclass(frozen=True)
class _CompletionRow:
    """A prompt-completion row, which holds the answer of one pole."""

    pair_id: str
    axis: str
    pole: str
    prompt: str
    completion: str


@row_parser
def _completion_row(row: dict[str, Any], axis: str | None) -> _CompletionRow:
    key, question = question_of(row)
    if question is None:
        raise RowFault("prompt", "missing_key", f"no prompt among {', '.join(map(str, row))}")
    question = with_system(row, question)
    prompt, completion = dialogue_text(question, key), answer_text(*value_of(row, "completion"))
    refuse_unused(row, question, row["completion"], used=(key, "axis", "completion", "pair_id", "pole"))
    name = axis_name(row, "axis", default=axis or DEFAULT_AXIS)
    pair_id = f"{name}: {prompt}" if row.get("pair_id") is None else str(row["pair_id"])
    return _CompletionRow(pair_id, name, text_of(row, "pole"), prompt, completion)


def join_prompt_completions(rows: Iterable[tuple[str, Any]], axis: str | None) -> Iterator[tuple[str, Outcome]]:
    """Join prompt-completion rows two by two, and yield (where, outcome).

    Two joined rows count as one, at the place of the first; rows without a partner are Rejects and come last.
    rows: (where, raw row or Reject). Memory holds the rows whose partner has not come yet.
    """
    waiting: dict[str, tuple[str, _CompletionRow]] = {}
    for where, row in rows:
        half = row if isinstance(row, Reject) else _completion_row(row, where, axis)
        if isinstance(half, Reject):
            yield where, half
        elif half.pair_id not in waiting:
            waiting[half.pair_id] = (where, half)
        else:
            first_where, first = waiting.pop(half.pair_id)
            yield first_where, _joined({"first": first, "second": half, "second_where": where}, first_where, axis)
    for where, half in waiting.values():
        yield where, Reject(where, "pair_id", "unpaired_row", f"no second row with pair_id {half.pair_id[:80]!r}")


@row_parser
def _joined(halves: dict[str, Any], axis: str | None) -> AcceptedRow:
    pair: tuple[_CompletionRow, _CompletionRow] = (halves["first"], halves["second"])
    for key, reason in (("prompt", "prompts_differ"), ("axis", "axes_differ")):
        if getattr(pair[0], key) != getattr(pair[1], key):
            raise RowFault(key, reason, f"differs from the {key} of its partner at {halves['second_where']}")
    _refuse_repeated(pair[0].prompt, pair[0].prompt, [half.completion for half in pair], "prompt")
    value_axis = axis_between(pair[0].axis, [half.pole for half in pair], None, "pole")
    options = [Option(half.completion, side_of(value_axis, half.pole, "pole")) for half in pair]
    return accept(value_axis, pair[0].prompt, options, "completion", "response")
