"""TRL's preference and prompt-completion formats, standard (text) or conversational (messages).

`chosen` shows the first pole of the axis, `rejected` the second; the axis is called `preference` unless a row's `axis`,
or the one given for all rows, says otherwise.
Prompt-completion rows carry one answer each: two of them with the same `pair_id` (where there is none: the same prompt)
and different `pole` make a record. Any column that says more of what is asked is used, or the row is a Reject.
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
    answer_opened,
    answer_text,
    common_turns,
    dialogue_text,
    prompt_length,
    roles_of,
)
from pft_core.data.sources.questions import asked_in, is_held, is_said_in, refuse_unused, with_system

DEFAULT_AXIS = "preference"
_PREFERENCE_POLES = ("chosen", "rejected")


def is_prompt_completion(row: Any) -> bool:
    """Tell the two formats apart by their columns, as TRL does."""
    return isinstance(row, dict) and "completion" in row and "chosen" not in row


@row_parser
def preference_row(row: dict[str, Any], axis: str | None) -> AcceptedRow:
    """Read `{"prompt", "chosen", "rejected"}`; without `prompt` it is what chosen and rejected have in common."""
    name = axis_name(row, "axis", default=axis or DEFAULT_AXIS)
    preference = shipped_axes().get(name) or axis_between(name, _PREFERENCE_POLES, None, "chosen")
    chosen, rejected = (value_of(row, key)[0] for key in _PREFERENCE_POLES)
    key, asked = asked_in(row)
    prompt, chosen, rejected = _split(asked, chosen, rejected, key)
    prompt = with_system(row, prompt)
    scenario, answers = dialogue_text(prompt, key), [answer_text(chosen, "chosen"), answer_text(rejected, "rejected")]
    refuse_unused(row, prompt, [chosen, rejected], used=(key, "axis", *_PREFERENCE_POLES))
    _refuse_repeated(prompt, scenario, answers, key)
    options = [Option(answer, side) for side, answer in enumerate(answers)]
    return accept(preference, scenario, options, "rejected", "response")


def _split(asked: Any, chosen: Any, rejected: Any, key: str) -> tuple[Any, Any, Any]:
    """Return prompt, chosen and rejected, each without the others; asked: the row's own prompt, None without one."""
    if asked is None:
        return split_common_prompt(chosen, rejected)
    if isinstance(asked, str) and _is_dialogue(chosen) and _is_dialogue(rejected):
        return _split_dialogues(asked, chosen, rejected, key)
    if isinstance(asked, list) and all(_is_dialogue(answer) for answer in (chosen, rejected)):
        length = len(asked)
        if asked and chosen[:length] == asked == rejected[:length]:
            return asked, chosen[length:], rejected[length:]
    return asked, chosen, rejected


def _split_dialogues(asked: str, chosen: list[Any], rejected: list[Any], key: str) -> tuple[Any, Any, Any]:
    """Read a prompt as text beside whole dialogues: these are what counts, as in TRL, and have to hold the prompt."""
    prompt = chosen[: common_turns(chosen, rejected)]
    roles = roles_of(prompt)
    if not roles or roles[0] in ("assistant", "gpt"):
        return asked, chosen, rejected
    answers = chosen[len(prompt) :], rejected[len(prompt) :]
    if "user" not in roles and "human" not in roles:
        return [*prompt, {"role": "user", "content": asked}], *answers
    if not is_held(asked, texts_in(prompt)) and not is_said_in(prompt, asked):
        raise RowFault(key, "prompt_differs", "not what the dialogues of chosen and rejected begin with")
    return prompt, *answers


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, list)


def _refuse_repeated(prompt: Any, scenario: str, answers: Sequence[str], key: str) -> None:
    """Raise RowFault where all answers say the prompt again, or one is a dialogue as text that asks it.

    A single word may well be said by chance.
    """
    repeated = len(scenario.split()) > 1 and all(answer.startswith(scenario) for answer in answers)
    if repeated or any(_asks_again(answer, texts_in(prompt)) for answer in answers):
        raise RowFault(key, "prompt_repeated", "answers say the prompt again: keep it in one place")


def _asks_again(answer: str, prompt: Sequence[str]) -> bool:
    asked, said = ("".join(f" {word}" for word in text.split()) + " " for text in (prompt[-1], answer))
    return asked in said and asked in " " + " ".join(answer[: answer_opened(answer)].split()) + " "


def split_common_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Split texts or message lists into the part they start with in common and what follows. Raises RowFault."""
    if type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
        raise RowFault("rejected", "wrong_type", "chosen and rejected are not of one kind, both text or both messages")
    length = prompt_length(chosen, rejected) if isinstance(chosen, str) else common_turns(chosen, rejected)
    if not length:
        raise RowFault("prompt", "missing_key", "no prompt, and chosen and rejected do not start alike")
    return chosen[:length], chosen[length:], rejected[length:]


@dataclass(frozen=True)
class _Half:
    """One prompt-completion row: one pole's answer."""

    pair_id: str
    axis: str
    pole: str
    prompt: str
    completion: str


@row_parser
def _half(row: dict[str, Any], axis: str | None) -> _Half:
    key, asked = asked_in(row)
    if asked is None:
        raise RowFault("prompt", "missing_key", f"no prompt among {', '.join(map(str, row))}")
    asked = with_system(row, asked)
    prompt, completion = dialogue_text(asked, key), answer_text(*value_of(row, "completion"))
    refuse_unused(row, asked, row["completion"], used=(key, "axis", "completion", "pair_id", "pole"))
    name = axis_name(row, "axis", default=axis or DEFAULT_AXIS)
    pair_id = f"{name}: {prompt}" if row.get("pair_id") is None else str(row["pair_id"])
    return _Half(pair_id, name, text_of(row, "pole"), prompt, completion)


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
def _joined(halves: dict[str, Any], axis: str | None) -> AcceptedRow:
    pair: tuple[_Half, _Half] = (halves["first"], halves["second"])
    for key, reason in (("prompt", "prompts_differ"), ("axis", "axes_differ")):
        if getattr(pair[0], key) != getattr(pair[1], key):
            raise RowFault(key, reason, f"not the {key} of its partner at {halves['second_where']}")
    _refuse_repeated(pair[0].prompt, pair[0].prompt, [half.completion for half in pair], "prompt")
    value_axis = axis_between(pair[0].axis, [half.pole for half in pair], None, "pole")
    options = [Option(half.completion, side_of(value_axis, half.pole, "pole")) for half in pair]
    return accept(value_axis, pair[0].prompt, options, "completion", "response")
