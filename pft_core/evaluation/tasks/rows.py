"""From the replies of a task to the rows of a report, with the keys that the metrics' rows have."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pft_core.data import PreferenceSpace
from pft_core.evaluation.metrics import EvaluationRow
from pft_core.evaluation.statistics import interval, ratio
from pft_core.evaluation.tasks.task import Reply, Task, TaskItem
from pft_core.registry import load_code

Score = Callable[[TaskItem, Any], float | None]


@dataclass(frozen=True)
class Scored:
    """An item's reply and its score. score: None where it is unparsed; by_position: what the first answer scores."""

    item: TaskItem
    reply: Reply
    score: float | None
    by_position: float | None

    def to_json(self) -> str:
        item = self.item
        told = {"item_id": item.id, "scenario": item.scenario or item.id, "axis": item.axis, "side": item.side}
        return json.dumps({**told, "reply": self.reply, "score": self.score})


def scored(task: Task, item: TaskItem, reply: Reply) -> Scored:
    """Score a reply; answers that are equally likely count as their mean."""
    score: Score = load_code(task.score)
    if isinstance(reply, str):
        return Scored(item, reply, score(item, reply), None)
    found = [value for place in reply if (value := score(item, place)) is not None]
    return Scored(item, reply, sum(found) / len(found) if found else None, score(item, 0))


def task_rows(
    name: str,
    found: Iterable[Scored],
    *,
    policy: str,
    space: PreferenceSpace,
    trained_poles: Mapping[str, set[int]] | None,
) -> list[EvaluationRow]:
    """Return a row for each axis and pole that the items have (None: they have none), unparsed replies as 0.

    Raises UserError for an axis that the space does not have.
    """
    groups: dict[tuple[str | None, int | None], list[Scored]] = {}
    for each in sorted(found, key=lambda s: (s.item.axis or "", s.item.side or 0, s.item.id)):
        groups.setdefault((each.item.axis, each.item.side), []).append(each)
    return [_row(name, group, policy, space, trained_poles) for group in groups.values()]


def _row(
    name: str,
    group: Sequence[Scored],
    policy: str,
    space: PreferenceSpace,
    trained_poles: Mapping[str, set[int]] | None,
) -> EvaluationRow:
    axis, side = group[0].item.axis, group[0].item.side
    values, ones = [each.score or 0.0 for each in group], [1.0] * len(group)
    low, high = interval(values, ones, [each.item.scenario or each.item.id for each in group])
    by_position = [each.by_position for each in group if each.by_position is not None]
    has_pole = axis is not None and side is not None
    return {
        "policy": policy,
        "axis": axis,
        "pole": space.axis(axis).poles[side].name if axis is not None and side is not None else None,
        "trained_pole": side in trained_poles.get(str(axis), ()) if has_pole and trained_poles else None,
        "metric": name,
        "value": ratio(values, ones),
        "n": len(group),
        "low": low,
        "high": high,
        "position_baseline": sum(by_position) / len(group) if len(by_position) == len(group) else None,
        "unparsed": sum(each.score is None for each in group) / len(group),
    }
