"""An evaluation as read from the folder that `pft evaluate` wrote: its report and its outcomes by item."""

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pft_core.errors import UserError
from pft_core.evaluation import OUTCOMES_NAME, TASKS, EvaluationRow, Outcome, read_outcomes
from pft_core.files import read_json
from pipelines.reporting import REPORT_NAMES


@dataclass(frozen=True)
class ScoredItem:
    """An item of a task as read from its file. score: None if the reply was unparsed."""

    item_id: str
    scenario: str
    axis: str | None
    side: int | None
    score: float | None

    @property
    def key(self) -> Hashable:
        return self.item_id, self.axis, self.side


@dataclass(frozen=True)
class Evaluation:
    """One evaluation. outcomes: for prepared records, by item. scored_items: for other tasks. One of them is empty."""

    folder: Path
    report: dict[str, Any]
    outcomes: Sequence[Outcome]
    scored_items: Sequence[ScoredItem]

    @staticmethod
    def read(folder: Path) -> "Evaluation":
        """Read a folder. Raises UserError if no evaluation wrote it."""
        for name in (REPORT_NAMES[0], OUTCOMES_NAME):
            if not (folder / name).is_file():
                raise UserError(
                    f"--outcomes {folder}: no {name} in this folder: give folders written by `pft evaluate`"
                )
        report = read_json(folder / REPORT_NAMES[0], what="the report of an evaluation")
        try:
            task, data = task_of(report), report["digests"]["data"]
            assert data
            assert all(row["policy"] for row in report["rows"])
        except (AssertionError, AttributeError, KeyError, TypeError):
            raise UserError(
                f"--outcomes {folder}: its report was not written by `pft evaluate`: give the folder of an evaluation"
            ) from None
        if task not in TASKS:
            raise UserError(f"--outcomes {folder}: task {task!r} is not registered: name its code with --plugin")
        if TASKS[task].asks_records:
            outcomes = sorted(
                read_outcomes(folder / OUTCOMES_NAME), key=lambda outcome: (outcome.item_id, outcome.form)
            )
            return Evaluation(folder, report, outcomes, [])
        return Evaluation(folder, report, [], read_scored(folder / OUTCOMES_NAME))

    @property
    def task(self) -> str:
        return task_of(self.report)

    @property
    def rows(self) -> list[EvaluationRow]:
        return list(self.report["rows"])

    @property
    def policy(self) -> str:
        return self.rows[0]["policy"]

    @property
    def items(self) -> set[Hashable]:
        """Return the questions asked, with their option order, since another order is another question."""
        questions = {(o.item_id, o.form, o.axis, o.scenario, o.sides) for o in self.outcomes}
        return questions | {(item.key, item.scenario) for item in self.scored_items}


def task_of(report: dict[str, Any]) -> str:
    """Return the task of a report; reports of older versions lack it and are for choices."""
    return str(report["config"].get("task", "choices"))


def read_scored(path: Path) -> list[ScoredItem]:
    """Read the items of a task, sorted like its rows by axis, side and id. Raises UserError for other content."""
    names = ScoredItem.__annotations__
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        items = [ScoredItem(**{name: line[name] for name in names}) for line in lines]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not scored items ({error}): evaluate again with --fresh") from None
    return sorted(items, key=lambda item: (item.axis or "", item.side or 0, item.item_id))


def refuse_unlike(a: Evaluation, b: Evaluation) -> None:
    """Raise UserError if the two evaluations did not ask the same items of the same data."""
    for what, ours, theirs in (
        ("tasks", a.task, b.task),
        ("data", a.report["digests"]["data"], b.report["digests"]["data"]),
    ):
        if ours != theirs:
            raise UserError(
                f"--outcomes {a.folder} {b.folder}: different {what} ({ours} and {theirs}): evaluate both "
                "policies on the same --data"
            )
    if difference := a.items ^ b.items:
        only_a, only_b = len(difference & a.items), len(difference & b.items)
        raise UserError(
            f"--outcomes {a.folder} {b.folder}: {only_a} items are only in the first, {only_b} only in the second: "
            "evaluate both with the same --forms, --limit-per-axis and --max-length (see their rejects.jsonl)"
        )
