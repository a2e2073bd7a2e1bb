"""Actors of an evaluation: each loads a policy once, then asks it groups of items."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa

from pft_core.data import RECORD_SCHEMA, Form, PairedExample, Reject
from pft_core.errors import UserError
from pft_core.evaluation import (
    Answerer,
    KeptAnswers,
    Outcome,
    Reply,
    TaskItem,
    answer_items,
    ask,
)
from pft_core.lazy import absent
from pipelines.evaluate.answering_job import AnsweringJob
from pipelines.jobs import UNUSED

ITEMS_PER_GROUP = 64
ITEMS_PER_GROUP_ON_CPU = 16  # so that the progress of a slow model moves, and a kill loses little

T = TypeVar("T")
Item = tuple[PairedExample, Form]

# A row is for one item of a job and holds an outcome, a reject, or the message of a user error. `place` numbers the
# items of a job: groups come back in any order, so the driver sorts by it and checks that no item is lost. `reused`:
# whether the base model's answers to the group were kept from an earlier evaluation.
NUMBERS = [("place", pa.int64()), ("job", pa.int64())]
ANSWERS_SCHEMA = pa.schema(
    [*NUMBERS, *((name, pa.string()) for name in ("outcome", "reject", "fault")), ("reused", pa.bool_())]
)


def items_table(items: Sequence[Item], first: int = 0, job: int = 0) -> pa.Table:
    """Make the table that a worker reads.

    first: the number of the first item among those of its job. job: the index of the actor's job.
    """
    rows = [{**record.to_row(), "form": form, "place": first + i, "job": job} for i, (record, form) in enumerate(items)]
    return pa.Table.from_pylist(rows, schema=pa.schema([*RECORD_SCHEMA, ("form", pa.string()), *NUMBERS]))


def in_groups(items: Sequence[T], *, on_cpu: bool = False) -> Iterator[tuple[int, Sequence[T]]]:
    """Split items into groups, each with the number of its first item. on_cpu: whether CPUs answer."""
    size = min(ITEMS_PER_GROUP, ITEMS_PER_GROUP_ON_CPU) if on_cpu else ITEMS_PER_GROUP
    for first in range(0, len(items), size):
        yield first, items[first : first + size]


class PolicyActor:
    """A Ray Data actor that asks one group of items per call and keeps the policy of the last group.

    A user error is returned as a row, because Ray would wrap a raised one in an actor death and a long traceback.
    """

    def __init__(self, *jobs: AnsweringJob):
        self._jobs = jobs
        self._loaded: tuple[int, tuple[Answerer, Answerer | None]] | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        first, job = rows[0]["place"], rows[0]["job"]
        items: list[Item] = [(PairedExample.from_row(row), row["form"]) for row in rows]
        try:
            with memory_errors(self._jobs[job]):
                one_pole_axes = self._jobs[job].settings.space.one_pole_axes
                answer, base_answer = self.policy_and_base(job)
                before = calls_reused(base_answer or answer)
                outcomes = ask(items, answer, base_answer, one_pole_axes=one_pole_axes)
                reused = calls_reused(base_answer or answer) > before
                answers = [{**answer_row(outcome), "reused": reused} for outcome in outcomes]
        except UserError as error:
            return answers_table([{"fault": str(error)}], first, job)
        return answers_table(answers, first, job)

    def policy_and_base(self, job: int = 0) -> tuple[Answerer, Answerer | None]:
        """Load the policy of a job, unless it is the last one loaded. Raises UserError."""
        with absent(*UNUSED):
            from pipelines.evaluate.policy import answerers

        if self._loaded is None or self._loaded[0] != job:
            self._loaded = None  # frees memory for the next policy
            self._loaded = (job, answerers(self._jobs[job]))
        return self._loaded[1]


def task_table(items: Sequence[TaskItem], first: int) -> pa.Table:
    """Make the table of a task's items; the driver scores the replies. first: the number of the first item."""
    rows = [
        {"place": first + i, "job": 0, "prompt": item.prompt, "answers": list(item.answers)}
        for i, item in enumerate(items)
    ]
    schema = pa.schema([*NUMBERS, ("prompt", pa.string()), ("answers", pa.list_(pa.string()))])
    return pa.Table.from_pylist(rows, schema=schema)


class TaskActor:
    """Like PolicyActor, for the items of a task; an outcome is the reply to one item."""

    def __init__(self, job: AnsweringJob):
        self._job = job

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        items = [TaskItem(str(row["place"]), row["prompt"], tuple(row["answers"])) for row in rows]
        try:
            with memory_errors(self._job):
                model, tokenizer = self._policy
                replies = answer_items(items, model=model, tokenizer=tokenizer, settings=self._job.settings)
            answers = [reply_row(reply) for reply in replies]
        except UserError as error:
            answers = [{"fault": str(error)}]
        return answers_table(answers, rows[0]["place"])

    @cached_property
    def _policy(self) -> tuple[Any, Any]:
        with absent(*UNUSED):
            from pipelines.evaluate.policy import load_asked

        return load_asked(self._job)


@contextmanager
def memory_errors(job: AnsweringJob) -> Iterator[None]:
    """Raise UserError if a model or a batch does not fit in memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        from pft_core.training import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory: lower tokens_per_batch={job.settings.tokens_per_batch}, run fewer workers per machine, or "
            "give each more memory"
        ) from None


def answer_row(outcome: Outcome | Reject) -> dict[str, str]:
    return {"outcome": outcome.to_json()} if isinstance(outcome, Outcome) else {"reject": json.dumps(asdict(outcome))}


def reply_row(reply: Reply | Reject) -> dict[str, str]:
    return {"reject": json.dumps(asdict(reply))} if isinstance(reply, Reject) else {"outcome": json.dumps(reply)}


def calls_reused(answer: Answerer) -> int:
    return answer.calls_reused if isinstance(answer, KeptAnswers) else 0


def answers_table(rows: Sequence[Mapping[str, Any]], first: int, job: int = 0) -> pa.Table:
    """Number the answers to consecutive items, starting at `first`."""
    numbered_rows = [{"place": first + i, "job": job, **row} for i, row in enumerate(rows)]
    return pa.Table.from_pylist(numbered_rows, schema=ANSWERS_SCHEMA)
