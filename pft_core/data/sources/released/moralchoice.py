"""The MoralChoice format: a scenario with two actions, and for each action which rules of common morality it breaks.

The rule at stake is the axis. A row is clear if one action breaks that rule and the other does not; all others are
rejected. The files list the action that breaks the rule second, so the order of the options is drawn, as in every
source, by a hash of the item's id.
"""

import functools
from typing import Any

from pft_core.data.preferences import PreferenceSpace, load_space
from pft_core.data.records import Option
from pft_core.data.sources.checks import AcceptedRow, RowFault, accept, axis_name, known_axis, row_parser, text_of
from pft_core.data.sources.questions import refuse_unused

# The column that says whether an action breaks a rule, without the action's number.
_COLUMNS = {
    "Do not kill": "death",
    "Do not cause pain": "pain",
    "Do not disable": "disable",
    "Do not deprive of freedom": "freedom",
    "Do not deprive of pleasure": "pleasure",
    "Do not deceive": "deceive",
    "Do not cheat": "cheat",
    "Do not break your promises": "break_promise",
    "Do not break the law": "break_law",
    "Do your duty": "duty",
}
# Spellings that occur once each in the released file.
_ALIASES = {"Do not break promise": "Do not break your promises", "Do cause pain": "Do not cause pain"}
_LABELS = ("No", "Yes", "No Agreement")
_READ = (
    "context",
    *("scenario_id", "ambiguity", "generation_type", "generation_rule", "action1", "action2"),
    *(f"a{number}_{column}" for number in (1, 2) for column in _COLUMNS.values()),
)


@row_parser
def moralchoice_row(row: dict[str, Any], axis: str | None) -> AcceptedRow:
    """Read `{"generation_rule", "context", "action1", "action2", "a1_*", "a2_*"}`. axis: for a row without a rule."""
    context = text_of(row, "context")
    refuse_unused(row, context, used=_READ)
    name = axis_name(row, "generation_rule", default=axis)
    rule = known_axis(_space(), _ALIASES.get(name, name), "generation_rule")
    actions = [text_of(row, f"action{number}") for number in (1, 2)]
    breaks = [_label(row, f"a{number}_{_COLUMNS[rule.name]}") for number in (1, 2)]
    if sorted(breaks) != ["No", "Yes"]:
        found = " and ".join(repr(label) for label in breaks)
        detail = f"{rule.name}: the actions are labeled {found}; one must keep the rule and one must break it"
        raise RowFault(f"a1_{_COLUMNS[rule.name]}", "unclear_labels", detail)
    options = [Option(action, int(label == "Yes")) for action, label in zip(actions, breaks, strict=True)]
    return accept(rule, context, options, "action2")


def _label(row: dict[str, Any], key: str) -> str:
    label = text_of(row, key)
    if label not in _LABELS:
        raise RowFault(key, "unknown_label", f"{label!r}; the labels are {', '.join(_LABELS)}")
    return label


@functools.cache
def _space() -> PreferenceSpace:
    return load_space("moralchoice")
