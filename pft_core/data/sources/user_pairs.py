"""Our own format, for JSON, JSON lines, Parquet, CSV and TSV.

A row holds a scenario, the name of an axis, and answers of both of its poles: either options to choose from, or two
free responses, which the prompt does not show:

    {"scenario": "...", "axis": "Pace", "options": [{"text": "...", "pole": "Fast"}, {"text": "...", "pole": "Slow"}]}
    {"scenario": "...", "axis": "Pace", "responses": {"Fast": "...", "Slow": "..."}}

The second may be flat, as a line of CSV is: {"axis", "scenario", "pole_a", "answer_a", "pole_b", "answer_b"}.
`axis` may be left out if one axis is set for all rows. The first pole of an axis is decided by the first of these that
applies: an optional key `"poles": ["Fast", "Slow"]`, the shipped axis with these names, the alphabet. An axis has the
same poles in every row of a data set: set `poles` in all of its rows or in none.
A description says what someone with a preference does. It may be in one row or in every row, as
`"descriptions": {"Fast": "...", "Slow": "..."}`, or as `description_a` and `description_b` of a flat row.
"""

from dataclasses import replace
from typing import Any

from pft_core.data.preferences import Axis
from pft_core.data.records import Option
from pft_core.data.sources.checks import (
    AcceptedRow,
    RowFault,
    accept,
    axis_between,
    axis_name,
    instance,
    row_parser,
    side_of,
    text,
    text_of,
)
from pft_core.data.sources.questions import refuse_unused


@row_parser
def own_row(row: dict[str, Any], axis: str | None) -> AcceptedRow:
    """The record of a row in PFT's own format: a scenario, and answers that name their poles.

    axis: the axis of a row that names none.
    """
    name = axis_name(row, "axis", default=axis)
    scenario = text_of(row, "scenario")
    answers, path = _answers(row)
    refuse_unused(row, scenario, [answer for answer, _, _ in answers], used=_READ)
    value_axis = _described(axis_between(name, [pole for _, pole, _ in answers], _stated_poles(row), path), row)
    options = [Option(answer, side_of(value_axis, pole, here)) for answer, pole, here in answers]
    return accept(value_axis, scenario, options, path, "choice" if path == "options" else "response")


def _answers(row: dict[str, Any]) -> tuple[list[tuple[str, str, str]], str]:
    """Return (text, pole, path of the pole) of each answer, and the key that holds them."""
    present = [key for key in _ANSWERS if row.get(key) is not None or (key == "answer_a" and key in row)]
    if not present:
        raise RowFault("options", "missing_key", f"no {' or '.join(_ANSWERS)} among {', '.join(map(str, row))}")
    for other in present[1:]:
        raise RowFault(present[0], "ambiguous_row", f"the row also has {other}: keep one of the two")
    return _ANSWERS[present[0]](row)


def _options(row: dict[str, Any]) -> tuple[list[tuple[str, str, str]], str]:
    """Return (text, pole, path of the pole) of each option."""
    answers = []
    for i, raw in enumerate(instance(row["options"], list, "options")):
        option, here = instance(raw, dict, f"options[{i}]"), f"options[{i}]."
        answers.append((text_of(option, "text", inside=here), text_of(option, "pole", inside=here), f"{here}pole"))
        refuse_unused(option, option["text"], used=("text", "pole"), inside=here)
    if not answers:
        raise RowFault("options", "pole_without_option", "the list is empty")
    return answers, "options"


def _responses(row: dict[str, Any]) -> tuple[list[tuple[str, str, str]], str]:
    """Return (text, pole, path of the pole) of each free response."""
    responses = instance(row["responses"], dict, "responses")
    not_null = {pole: answer for pole, answer in responses.items() if answer is not None}  # Parquet adds null keys
    answers = [
        (text(answer, f"responses.{pole}"), text(pole, "responses"), f"responses.{pole}")
        for pole, answer in not_null.items()
    ]
    if not answers:
        raise RowFault("responses", "pole_without_option", "there is no response")
    return answers, "responses"


def _flat_pair(row: dict[str, Any]) -> tuple[list[tuple[str, str, str]], str]:
    """Return (text, pole, path of the pole) of the two answers that have their own columns."""
    return [(text_of(row, f"answer_{end}"), text_of(row, f"pole_{end}"), f"pole_{end}") for end in "ab"], "answer_b"


_ANSWERS = {"responses": _responses, "options": _options, "answer_a": _flat_pair}
_OF_POLES = ("poles", "descriptions", "pole_a", "pole_b", "description_a", "description_b")
_READ = ("scenario", "axis", *_ANSWERS, "answer_b", *_OF_POLES)


def _stated_poles(row: dict[str, Any]) -> list[str] | None:
    if row.get("poles") is None:
        return None
    return [text(pole, f"poles[{i}]") for i, pole in enumerate(instance(row["poles"], list, "poles"))]


def _described(axis: Axis, row: dict[str, Any]) -> Axis:
    """Return the axis with the row's own descriptions of its poles."""
    by_pole = instance(row["descriptions"], dict, "descriptions") if row.get("descriptions") is not None else {}
    descriptions = [(pole, value, f"descriptions.{pole}") for pole, value in by_pole.items()]
    descriptions += [(row.get(f"pole_{end}"), row.get(f"description_{end}"), f"description_{end}") for end in "ab"]
    by_side = {side_of(axis, text(pole, here), here): text(value, here) for pole, value, here in descriptions if value}
    first, second = (replace(p, description=by_side.get(side, p.description)) for side, p in enumerate(axis.poles))
    return Axis(axis.name, first, second)
