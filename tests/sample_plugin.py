"""A sample plugin for `plugins:` and `--plugin`: an objective, a source, a metric and a task."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pft_core.data import SOURCES, AcceptedRow, Axis, Option, Pole, SourceEntry, accept, row_parser, text_of
from pft_core.evaluation import METRICS, TASKS, Metric, Outcome, Task, TaskItem
from pft_core.objectives import OBJECTIVES, Objective, ObjectiveEntry, ObjectiveSettings, paired_nll

AXIS = Axis("Pace", Pole("Hasty", "Acts now."), Pole("Calm", "Waits."))


def halved(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """Paired fine-tuning in which the second side has half the weight."""
    return paired_nll(alpha=settings.alpha, beta=settings.alpha / 2)


@row_parser
def two_answers(row: dict[str, Any], axis: str | None) -> AcceptedRow:
    """Read `{"situation", "fast", "slow"}`."""
    options = [Option(text_of(row, "fast"), 0), Option(text_of(row, "slow"), 1)]
    return accept(AXIS, text_of(row, "situation"), options, "fast")


def both_wrong(outcome: Outcome) -> tuple[float, float]:
    """Return 1 if the policy is wrong under both poles."""
    return float(not any(outcome.shows_only(outcome.chosen[side], side) for side in (0, 1))), 1.0


def questions(data: Path, settings: Any) -> list[TaskItem]:
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    return [TaskItem(row["id"], row["question"], tuple(row["answers"]), gold=row["right"]) for row in rows]


def is_right(item: TaskItem, answer: int | str | None) -> float:
    return float(answer == item.gold)


OBJECTIVES.add("halved", ObjectiveEntry(halved, knobs=("alpha",)))
SOURCES.add("two_answers", SourceEntry(two_answers))
METRICS.add("both_wrong", Metric("Both wrong", "wrong under either pole", of="pair", measure=both_wrong, best="lowest"))
TASKS.add("trivia", Task("Trivia", "share of correct answers", items=questions, score=is_right))
