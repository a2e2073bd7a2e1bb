"""Score the replies of a task, and turn them into report rows with the same keys as the metrics' rows."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pft_core.data import PreferenceSpace
from pft_core.errors import UserError
from pft_core.evaluation.intervals import interval, ratio
from pft_core.evaluation.metrics import EvaluationRow, finite
from pft_core.evaluation.tasks.task import Reply, Task, TaskItem
from pft_core.registry import call, load_code

Score = Callable[[Any], float | None]  # takes the place of an answer, or the generated text


@dataclass(frozen=True)
class ScoredReply:
    """An item's reply and its score, None if it is unparsed. by_position: the score of the first answer."""

    item: TaskItem
    reply: Reply
    score: float | None
    by_position: float | None

    def to_json(self) -> str:
        """Return the reply and its score as one line of JSON."""
        return reply_line(self.item, self.reply, score=self.score)


def reply_line(item: TaskItem, reply: Reply, **more: float | None) -> str:
    """Return a reply as one line of JSON. more: further keys, such as its score."""
    keys = {"item_id": item.id, "scenario": item.scenario or item.id, "axis": item.axis, "side": item.side}
    return json.dumps({**keys, "reply": reply, **more})


def scored(task: Task, item: TaskItem, reply: Reply) -> ScoredReply:
    """Score a reply; tied answers give their mean score. Raises UserError if the score function fails."""
    score: Score = partial(_score, task, item)
    if isinstance(reply, str):
        return ScoredReply(item, reply, score(reply), None)
    values = [value for place in reply if (value := score(place)) is not None]
    return ScoredReply(item, reply, sum(values) / len(values) if values else None, score(0))


def _score(task: Task, item: TaskItem, answer: int | str) -> float | None:
    what = f"task {task.label!r}, item {item.id!r}"
    returned = call(load_code(task.score), item, answer, what=what)
    try:
        return None if returned is None else finite(returned)
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{what}: the score is {returned!r}: return a finite number, or None if the answer cannot be read"
        ) from None


def task_rows(
    name: str,
    replies: Iterable[ScoredReply],
    *,
    policy: str,
    space: PreferenceSpace,
    trained_poles: Mapping[str, set[int]] | None,
) -> list[EvaluationRow]:
    """Return a row for each axis and side of the items, None if they have none; unparsed replies score 0.

    Raises UserError if the space does not have an axis.
    """
    groups: dict[tuple[str | None, int | None], list[ScoredReply]] = {}
    for each in sorted(replies, key=lambda s: (s.item.axis or "", s.item.side or 0, s.item.id)):
        groups.setdefault((each.item.axis, each.item.side), []).append(each)
    return [_row(name, group, policy, space, trained_poles) for group in groups.values()]


def _row(
    name: str,
    group: Sequence[ScoredReply],
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
