"""What `pft evaluate` has left in a folder: its report, and what was chosen of every item."""

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
    """An item of a task as its file has it; score: None where the reply was unparsed."""

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
    """One of the two. outcomes: of prepared records, by item; scored: of another task. The other one is empty."""

    folder: Path
    report: dict[str, Any]
    outcomes: Sequence[Outcome]
    scored: Sequence[ScoredItem]

    @staticmethod
    def read(folder: Path) -> "Evaluation":
        """Read a folder. Raises UserError where no evaluation has written it."""
        for name in (REPORT_NAMES[0], OUTCOMES_NAME):
            if not (folder / name).is_file():
                raise UserError(f"--outcomes {folder}: no {name} there: give folders written by `pft evaluate`")
        report = read_json(folder / REPORT_NAMES[0], what="the report of an evaluation")
        try:
            task, data = task_of(report), report["digests"]["data"]
            assert data
            assert all(row["policy"] for row in report["rows"])
        except (AssertionError, AttributeError, KeyError, TypeError):
            raise UserError(
                f"--outcomes {folder}: its report is none of `pft evaluate`: give the folder of an evaluation"
            ) from None
        if task not in TASKS:
            raise UserError(f"--outcomes {folder}: evaluates task {task!r}: name its code with --plugin")
        if TASKS[task].asks_records:
            outcomes = sorted(read_outcomes(folder / OUTCOMES_NAME), key=lambda each: (each.item_id, each.form))
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
        """What was asked: with every option in its place, since another order is another question."""
        shown = {(each.item_id, each.form, each.axis, each.scenario, each.sides) for each in self.outcomes}
        return shown | {(each.key, each.scenario) for each in self.scored}


def task_of(report: dict[str, Any]) -> str:
    """The task of a report; those of older code do not say it, and asked choices."""
    return str(report["config"].get("task", "choices"))


def read_scored(path: Path) -> list[ScoredItem]:
    """Read the items of a task by axis, side and id, as its rows are. Raises UserError for anything else."""
    names = ScoredItem.__annotations__
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found = [ScoredItem(**{name: line[name] for name in names}) for line in lines]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not scored items ({error}): evaluate again with --fresh") from None
    return sorted(found, key=lambda each: (each.axis or "", each.side or 0, each.item_id))


def refuse_unlike(a: Evaluation, b: Evaluation) -> None:
    """Raise UserError where the two were not asked the same items of the same data."""
    for what, ours, theirs in (
        ("tasks", a.task, b.task),
        ("data", a.report["digests"]["data"], b.report["digests"]["data"]),
    ):
        if ours != theirs:
            raise UserError(
                f"--outcomes {a.folder} {b.folder}: evaluations of other {what} ({ours}, {theirs}): evaluate both "
                "policies on the same --data"
            )
    if lone := a.items ^ b.items:
        only = len(lone & a.items), len(lone & b.items)
        raise UserError(
            f"--outcomes {a.folder} {b.folder}: {only[0]} items were asked in the first alone, {only[1]} in the second "
            "alone: evaluate both with the same forms, limits and max_length (see their rejects.jsonl)"
        )
