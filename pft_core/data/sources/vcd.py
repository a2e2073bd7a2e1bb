"""The Value Conflict Dilemma format: a scenario, its axis, and two to ten options that each show one pole."""

import functools
from typing import Any

from pft_core.data.preferences import PreferenceSpace, load_space
from pft_core.data.records import Option
from pft_core.data.sources.checks import (
    AcceptedRow,
    accept,
    axis_name,
    instance,
    known_axis,
    row_parser,
    side_of,
    text_of,
    value_of,
)
from pft_core.data.sources.questions import refuse_unused

# The scene is a category of the released scenarios and is not part of the question.
_READ = ("scenario", "preference domain", "preference_domain", "options", "scene")


@row_parser
def vcd_row(row: dict[str, Any], axis: str | None) -> AcceptedRow:
    """The record of a row `{"scenario", "preference domain", "options": [{"text", "bias"}]}`.

    axis: the axis of a row that names none.
    """
    refuse_unused(row, row.get("scenario"), used=_READ)
    name = axis_name(row, "preference domain", "preference_domain", default=axis)
    scenario = text_of(row, "scenario")
    value_axis = known_axis(_space(), name, "preference domain")
    raw_options, path = value_of(row, "options")
    options = []
    for i, raw in enumerate(instance(raw_options, list, path)):
        here = f"options[{i}]"
        option = instance(raw, dict, here)
        refuse_unused(option, (), used=("text", "option_text", "bias"), inside=f"{here}.")
        pole = text_of(option, "bias", inside=f"{here}.")
        options.append(
            Option(text_of(option, "text", "option_text", inside=f"{here}."), side_of(value_axis, pole, f"{here}.bias"))
        )
    return accept(value_axis, scenario, options, path)


@functools.cache
def _space() -> PreferenceSpace:
    return load_space("vcd")
