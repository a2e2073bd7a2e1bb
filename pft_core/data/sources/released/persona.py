"""The persona format of Anthropic's model-written evals: a statement that someone with a trait would make, or not."""

import functools
from typing import Any

from pft_core.data.preferences import Axis, Pole, load_space
from pft_core.data.records import Option
from pft_core.data.sources.checks import AcceptedRow, RowFault, accept, named_by, row_parser, text_of
from pft_core.data.sources.questions import refuse_unused

_ANSWERS = ("Yes", "No")
_KEYS = ("answer_matching_behavior", "answer_not_matching_behavior")  # in the order of the poles


@row_parser
def persona_row(row: dict[str, Any], axis: str | None) -> AcceptedRow:
    """Read `{"question", "statement", "answer_matching_behavior", "answer_not_matching_behavior"}`; axis: the trait."""
    assert axis is not None, "the caller names the trait"
    question = text_of(row, "question")
    _refuse_other_statement(row, question)
    refuse_unused(row, question, used=("question", "statement", *_KEYS))
    answers = [_answer(row, key) for key in _KEYS]
    if answers[0] == answers[1]:
        raise RowFault(_KEYS[1], "answers_overlap", f"{answers[1]} is also the matching answer")
    return accept(trait_axis(axis), question, [Option(text, side) for side, text in enumerate(answers)], "question")


def trait_axis(name: str) -> Axis:
    """Return the axis of a trait, which may be named as its file is: `risk-averse` is the axis `Risk averse`.

    A trait that is not shipped gets a wording that is made from its name.
    """
    named = named_by(name)
    words = named[:1].lower() + named[1:]
    shown, hidden = f"Shows the trait {words}.", f"Does not show the trait {words}."
    return _shipped().get(named, Axis(named, Pole("matching", shown), Pole("not matching", hidden)))


@functools.cache
def _shipped() -> dict[str, Axis]:
    return {axis.name: axis for axis in load_space("persona").axes}


def _refuse_other_statement(row: dict[str, Any], question: str) -> None:
    """Raise RowFault if the row has a statement that its question does not contain."""
    if row.get("statement") is not None and text_of(row, "statement") not in question:
        raise RowFault("statement", "statement_differs", "the question is about something else")


def _answer(row: dict[str, Any], key: str) -> str:
    answer = text_of(row, key)
    if answer not in _ANSWERS:
        raise RowFault(key, "not_yes_or_no", f"{answer!r}; for lettered choices in the question, use source bqd")
    return answer
