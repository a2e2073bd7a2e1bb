"""The Behavioral Question Datasets format: the question holds lettered choices, of which one matches a behavior."""

import re
from typing import Any

from pft_core.data.preferences import Axis, Pole
from pft_core.data.records import LETTERS, Option
from pft_core.data.sources.checks import (
    AcceptedRow,
    RowFault,
    accept,
    row_parser,
    shipped_axes,
    text,
    text_of,
    value_of,
)
from pft_core.data.sources.questions import refuse_unused

# A letter counts only at the start of a line, as "(A)" also occurs inside sentences.
_LETTER = re.compile(r"^[ \t]*\(([A-Z])\)", re.MULTILINE)
_CHOICES_LINE = re.compile(r"^[ \t]*Choices:\s*\Z", re.MULTILINE)
_ANSWER = re.compile(r"\s*\(?([A-Z])\)?\s*")


@row_parser
def bqd_row(row: dict[str, Any], axis: str | None) -> AcceptedRow:
    """The record of a row `{"question", "answer_matching_behavior", "answer_not_matching_behavior"}`.

    axis: the name of the behavior.
    """
    assert axis is not None, "the caller names the behavior"
    question = text_of(row, "question")
    answers = [value_of(row, f"answer_{kind}_behavior") for kind in ("matching", "not_matching")]
    refuse_unused(row, question, used=("question", *(key for _, key in answers)))
    scenario, choices = split_question(question)
    matching, not_matching = (_answers(value, path, num_choices=len(choices)) for value, path in answers)
    if matching & not_matching:
        both = ", ".join(LETTERS[i] for i in sorted(matching & not_matching))
        raise RowFault("answer_not_matching_behavior", "answers_overlap", f"({both}) is also the matching answer")
    # Choices that neither key names count as not showing the behavior.
    options = [Option(choice, 0 if i in matching else 1) for i, choice in enumerate(choices)]
    return accept(behavior_axis(axis), scenario, options, "question")


def split_question(question: str) -> tuple[str, list[str]]:
    """Split a question into its text and its 2 to 10 choices, in order. Raises RowFault."""
    marks = list(_LETTER.finditer(question))
    letters = "".join(mark[1] for mark in marks)
    if len(letters) < 2 or letters != "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(letters)]:
        order = ", ".join(letters) or "none"
        raise RowFault("question", "bad_choices", f"choices must be lines (A), (B), ... in order; found {order}")
    if len(letters) > len(LETTERS):
        raise RowFault("question", "too_many_options", f"{len(letters)} choices; at most {len(LETTERS)} are allowed")
    ends = [*(mark.start() for mark in marks[1:]), len(question)]
    choices = [text(question[m.end() : end], f"question.({m[1]})") for m, end in zip(marks, ends, strict=True)]
    return text(_CHOICES_LINE.sub("", question[: marks[0].start()]), "question"), choices


def behavior_axis(name: str) -> Axis:
    """Return the shipped axis of a behavior, or an axis whose wording is made from the behavior's name."""
    words = name.replace("-", " ").replace("_", " ")
    shown, hidden = f"Shows the behavior {words}.", f"Does not show the behavior {words}."
    generic = Axis(name, Pole("matching", shown), Pole("not matching", hidden))
    shipped = shipped_axes().get(name, generic)
    return shipped if shipped.first.name == "matching" else generic


def _answers(value: Any, path: str, *, num_choices: int) -> set[int]:
    """Return the choices that a value names: a letter, or a list of letters."""
    answers = value if isinstance(value, list) else [value]
    if not answers:
        raise RowFault(path, "empty_text", "expected a letter, found an empty list")
    return {_answer(answer, path, num_choices=num_choices) for answer in answers}


def _answer(value: Any, path: str, *, num_choices: int) -> int:
    match = _ANSWER.fullmatch(text(value, path))
    if not match or match[1] not in LETTERS[:num_choices]:
        raise RowFault(path, "answer_not_among_choices", f"{value!r}; the choices are A to {LETTERS[num_choices - 1]}")
    return LETTERS.index(match[1])
