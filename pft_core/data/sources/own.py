"""Our own schema, for JSON, JSON lines and Parquet.

A row is a scenario, the name of an axis, and answers of both its poles, either as options to choose from or as two
free responses that the prompt does not show:

    {"scenario": "...", "axis": "Pace", "options": [{"text": "...", "pole": "Fast"}, {"text": "...", "pole": "Slow"}]}
    {"scenario": "...", "axis": "Pace", "responses": {"Fast": "...", "Slow": "..."}}

`axis` may be left out where one is given for all rows. The first-named pole of an axis is, in this order: what an
optional key `"poles": ["Fast", "Slow"]` says, what the shipped axis with these names says, the alphabet. An axis has
the same poles in every row of a data set: give `poles` in all of its rows or in none.
"""

from typing import Any

from pft_core.data.records import Option
from pft_core.data.sources.checks import (
    Accepted,
    RowFault,
    accept,
    axis_between,
    axis_name,
    instance,
    row_parser,
    side_of,
    text,
    text_of,
    value_of,
)


@row_parser
def own_row(row: dict[str, Any], axis: str | None) -> Accepted:
    """Read a row of our own schema; axis: where the row names none."""
    name = axis_name(row, "axis", default=axis)
    scenario = text_of(row, "scenario")
    free = row.get("responses") is not None
    if free and row.get("options") is not None:
        raise RowFault("responses", "ambiguous_row", "holds options as well: keep one of the two")
    answers, path = (_responses if free else _options)(row)
    value_axis = axis_between(name, [pole for _, pole, _ in answers], _stated_poles(row), path)
    options = [Option(answer, side_of(value_axis, pole, here)) for answer, pole, here in answers]
    return accept(value_axis, scenario, options, path, "response" if free else "choice")


def _options(row: dict[str, Any]) -> tuple[list[tuple[str, str, str]], str]:
    """Return (text, pole, path of the pole) of each option."""
    raw_options, path = value_of(row, "options")
    answers = []
    for i, raw in enumerate(instance(raw_options, list, path)):
        option, here = instance(raw, dict, f"options[{i}]"), f"options[{i}]."
        answers.append((text_of(option, "text", inside=here), text_of(option, "pole", inside=here), f"{here}pole"))
    if not answers:
        raise RowFault(path, "pole_without_option", "the list is empty")
    return answers, path


def _responses(row: dict[str, Any]) -> tuple[list[tuple[str, str, str]], str]:
    """Return (text, pole, path of the pole) of each free response."""
    responses = instance(row["responses"], dict, "responses")
    given = {pole: answer for pole, answer in responses.items() if answer is not None}  # Parquet fills keys with null
    answers = [
        (text(answer, f"responses.{pole}"), text(pole, "responses"), f"responses.{pole}")
        for pole, answer in given.items()
    ]
    if not answers:
        raise RowFault("responses", "pole_without_option", "there is no response")
    return answers, "responses"


def _stated_poles(row: dict[str, Any]) -> list[str] | None:
    if row.get("poles") is None:
        return None
    return [text(pole, f"poles[{i}]") for i, pole in enumerate(instance(row["poles"], list, "poles"))]
