"""TRL's preference and prompt-completion formats, standard (text) or conversational (messages).

`chosen` shows the first pole of the axis, `rejected` the second; the axis is called `preference` unless it is named.
Prompt-completion rows carry one answer each: two of them with the same `pair_id` (where there is none: the same prompt)
and different `pole` make a record.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pft_core.data.records import Option, Reject
from pft_core.data.sources.checks import (
    Accepted,
    Outcome,
    RowFault,
    accept,
    axis_between,
    instance,
    row_parser,
    shipped_axes,
    side_of,
    text,
    text_of,
    value_of,
)

DEFAULT_AXIS = "preference"
_PREFERENCE_POLES = ("chosen", "rejected")


def is_prompt_completion(row: Any) -> bool:
    """Tell the two formats apart by their columns, as TRL does."""
    return isinstance(row, dict) and "completion" in row and "chosen" not in row


@row_parser
def preference_row(row: dict[str, Any], axis: str | None) -> Accepted:
    """Read `{"prompt", "chosen", "rejected"}`; without `prompt` it is what chosen and rejected have in common."""
    name = axis or DEFAULT_AXIS
    preference = shipped_axes().get(name) or axis_between(name, _PREFERENCE_POLES, None, "chosen")
    chosen, rejected = (value_of(row, key)[0] for key in _PREFERENCE_POLES)
    if row.get("prompt") is not None:
        prompt = row["prompt"]
    else:
        prompt, chosen, rejected = split_common_prompt(chosen, rejected)
    answers = [dialogue_text(chosen, "chosen"), dialogue_text(rejected, "rejected")]
    options = [Option(answer, side) for side, answer in enumerate(answers)]
    return accept(preference, dialogue_text(prompt, "prompt"), options, "rejected", "response")


def split_common_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Split texts or message lists into the part they start with in common and what follows. Raises RowFault."""
    if type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
        raise RowFault("rejected", "wrong_type", "chosen and rejected are not of one kind, both text or both messages")
    length = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    if isinstance(chosen, str):
        # Back to a word's start: what is common may end inside the first word of the two answers.
        while length and not chosen[length - 1].isspace():
            length -= 1
    if not length:
        raise RowFault("prompt", "missing_key", "no prompt, and chosen and rejected do not start alike")
    return chosen[:length], chosen[length:], rejected[length:]


def dialogue_text(value: Any, path: str) -> str:
    """Return a text as it is, a single message's content, and several messages with the name of each role."""
    if isinstance(value, str):
        return text(value, path)
    messages = [instance(message, dict, f"{path}[{i}]") for i, message in enumerate(instance(value, list, path))]
    contents = [text_of(message, "content", inside=f"{path}[{i}].") for i, message in enumerate(messages)]
    if len(messages) == 1:
        return contents[0]
    roles = [text_of(message, "role", inside=f"{path}[{i}].") for i, message in enumerate(messages)]
    turns = [f"{role.capitalize()}: {content}" for role, content in zip(roles, contents, strict=True)]
    return text("\n".join(turns), path)


@dataclass(frozen=True)
class _Half:
    """One prompt-completion row: one pole's answer."""

    pair_id: str
    pole: str
    prompt: str
    completion: str


@row_parser
def _half(row: dict[str, Any], axis: str | None) -> _Half:
    prompt = dialogue_text(*value_of(row, "prompt"))
    completion = dialogue_text(*value_of(row, "completion"))
    pair_id = prompt if row.get("pair_id") is None else str(row["pair_id"])
    return _Half(pair_id, text_of(row, "pole"), prompt, completion)


def join_prompt_completions(rows: Iterable[tuple[str, Any]], axis: str | None) -> Iterator[tuple[str, Outcome]]:
    """Yield (where, outcome) of prompt-completion rows, joined two by two.

    Two joined rows count as one, at the place of the first; a row that finds no partner is a Reject, after all others.
    rows: (where, raw row or Reject). Memory: the rows whose partner has not come yet.
    """
    waiting: dict[str, tuple[str, _Half]] = {}
    for where, row in rows:
        half = row if isinstance(row, Reject) else _half(row, where, axis)
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
def _joined(halves: dict[str, Any], axis: str | None) -> Accepted:
    pair: tuple[_Half, _Half] = (halves["first"], halves["second"])
    if pair[0].prompt != pair[1].prompt:
        raise RowFault("prompt", "prompts_differ", f"not the prompt of its partner at {halves['second_where']}")
    value_axis = axis_between(axis or DEFAULT_AXIS, [half.pole for half in pair], None, "pole")
    options = [Option(half.completion, side_of(value_axis, half.pole, "pole")) for half in pair]
    return accept(value_axis, pair[0].prompt, options, "completion", "response")
