"""The PrefEval format: a preference that only an earlier choice shows, then a question with one option that fits it.

A row of the folder `choice` has the dialogue of that choice, a row of `options` the question's options; rows with the
same preference and question are joined. The options have no second pole, so the records are for evaluation only. The
files list the option that fits first, so the order is drawn, as in every source, by a hash of the item's id.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from pft_core.data.preferences import Axis, Pole
from pft_core.data.records import Option, Reject, Turn
from pft_core.data.sources.checks import (
    AcceptedRow,
    Outcome,
    accept,
    instance,
    named_by,
    row_parser,
    text,
    text_of,
    value_of,
)
from pft_core.data.sources.dialogues import turns_as_text
from pft_core.data.sources.questions import refuse_unused

_CHOICE, _OPTIONS = "conversation", "classification_task_options"  # the key that only one kind of row has
_OTHER = {_CHOICE: _OPTIONS, _OPTIONS: _CHOICE}
_FOLDER = {_CHOICE: "choice", _OPTIONS: "options"}
# The preference is hidden from the policy. The other keys repeat parts of the dialogue or explain them.
_READ = ("question", "preference", _CHOICE, _OPTIONS, "explanation", "implicit_query", "options", "aligned_op")
_TURNS = {
    "query": "user",
    "assistant_options": "assistant",
    "user_selection": "user",
    "assistant_acknowledgment": "assistant",
}


@row_parser
def prefeval_row(row: dict[str, Any], axis: str | None) -> AcceptedRow:
    """Read `{"question", "conversation", "classification_task_options"}`, of which the first fits; axis: the topic."""
    assert axis is not None, "the caller names the topic"
    question = text_of(row, "question")
    refuse_unused(row, question, used=_READ)
    dialogue = instance(value_of(row, _CHOICE)[0], dict, _CHOICE)
    refuse_unused(dialogue, (), used=tuple(_TURNS), inside=f"{_CHOICE}.")
    earlier = [Turn(role, text_of(dialogue, key, inside=f"{_CHOICE}.")) for key, role in _TURNS.items()]
    turns = (*earlier, Turn("user", question))
    raw_options = instance(value_of(row, _OPTIONS)[0], list, _OPTIONS)
    texts = [text(option, f"{_OPTIONS}[{i}]") for i, option in enumerate(raw_options)]
    options = [Option(option, min(i, 1)) for i, option in enumerate(texts)]
    return accept(topic_axis(axis), turns_as_text(turns), options, _OPTIONS, turns=turns)


def topic_axis(name: str) -> Axis:
    """Return the axis of a topic, which has one pole and may be named as its file is."""
    return Axis(named_by(name), Pole("fitting"), None)


def is_half(row: Any) -> bool:
    """Return whether a row has only the dialogue or only the options, so that rows must be joined."""
    return not (isinstance(row, dict) and _CHOICE in row and _OPTIONS in row)


def join_halves(rows: Iterable[tuple[str, Any]], axis: str | None) -> Iterator[tuple[str, Outcome]]:
    """Join rows with the same preference and question two by two, and yield (where, outcome).

    Two joined rows count as one, at the place of the first; rows without a partner are Rejects and come last.
    rows: (where, raw row or Reject).
    """
    waiting: dict[tuple[str, str, str], tuple[str, dict[str, Any]]] = {}
    for where, row in rows:
        key = row if isinstance(row, Reject) else _half_key(row, where, axis)
        if isinstance(key, Reject):
            yield where, key
        elif (partner := (_OTHER[key[0]], *key[1:])) in waiting:
            first_where, first = waiting.pop(partner)
            yield first_where, prefeval_row({**row, **first}, first_where, axis)
        elif key in waiting:
            detail = f"the same preference and question as {waiting[key][0]}"
            yield where, Reject(where, "question", "repeated_half", detail)
        else:
            waiting[key] = (where, row)
    for (kind, *_), (where, _) in waiting.items():
        yield where, _unpaired(where, kind)


@row_parser
def _half_key(row: dict[str, Any], axis: str | None) -> tuple[str, str, str]:
    """Return the kind of a row, by the key that only that kind has, and what it is joined by."""
    _, kind = value_of(row, _CHOICE, _OPTIONS)
    return kind, text_of(row, "preference"), text_of(row, "question")


def _unpaired(where: str, kind: str) -> Reject:
    other = _OTHER[kind]
    detail = f"no row with {other} has this preference and question: give the folder `{_FOLDER[other]}` as well"
    return Reject(where, "question", "unpaired_row", detail)
