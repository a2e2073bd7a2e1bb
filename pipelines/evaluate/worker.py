"""What runs on every evaluation worker: load the policy once, then ask it groups of items."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from pft_core.data import RECORD_SCHEMA, Form, PairedExample, Reject
from pft_core.errors import UserError
from pft_core.evaluation import (
    Answerer,
    Asking,
    Outcome,
    TaskItem,
    answer_items,
    ask,
)
from pft_core.policies import ModelRef

if TYPE_CHECKING:
    import torch

Item = tuple[PairedExample, Form]

# A row holds one of three: an outcome, a reject, or the message of a user's mistake.
ANSWERED_SCHEMA = pa.schema([(name, pa.string()) for name in ("outcome", "reject", "fault")])


@dataclass(frozen=True)
class Job:
    """What an actor needs: which policy, how to ask it, and on what it runs."""

    ref: ModelRef
    asking: Asking
    generate: bool
    precision: Literal["bf16", "fp32"]
    use_gpu: bool
    num_threads: int

    @property
    def device(self) -> "torch.device":
        import torch

        return torch.device("cuda" if self.use_gpu else "cpu")


def items_table(items: Sequence[Item]) -> pa.Table:
    rows = [{**record.to_row(), "form": form} for record, form in items]
    return pa.Table.from_pylist(rows, schema=RECORD_SCHEMA.append(pa.field("form", pa.string())))


class PolicyActor:
    """A Ray Data actor that loads a policy once, with its first group, and asks it one group of items a call.

    A user's mistake comes back as a row: raised here, Ray would wrap it in an actor's death and a page of traces.
    """

    def __init__(self, job: Job):
        self._job = job

    def __call__(self, table: pa.Table) -> pa.Table:
        items: list[Item] = [(PairedExample.from_row(row), row["form"]) for row in table.to_pylist()]
        try:
            return answered_table(ask(items, *self._policy_and_base))
        except UserError as error:
            return pa.Table.from_pylist([{"fault": str(error)}], schema=ANSWERED_SCHEMA)

    @cached_property
    def _policy_and_base(self) -> tuple[Answerer, Answerer | None]:
        from pipelines.evaluate.policy import answerers

        return answerers(self._job)


def task_table(items: Sequence[TaskItem], first: int) -> pa.Table:
    """What a worker needs of a task's items; first: the place of the first one. The driver scores."""
    rows = [{"place": first + i, "prompt": item.prompt, "answers": list(item.answers)} for i, item in enumerate(items)]
    schema = pa.schema([("place", pa.int64()), ("prompt", pa.string()), ("answers", pa.list_(pa.string()))])
    return pa.Table.from_pylist(rows, schema=schema)


class TaskActor:
    """As PolicyActor, for the items of a task: an outcome is the item's place and reply."""

    def __init__(self, job: Job):
        self._job = job

    def __call__(self, table: pa.Table) -> pa.Table:
        items = [TaskItem(str(row["place"]), row["prompt"], tuple(row["answers"])) for row in table.to_pylist()]
        try:
            model, tokenizer = self._policy
            replies = answer_items(items, model=model, tokenizer=tokenizer, asking=self._job.asking)
        except UserError as error:
            return pa.Table.from_pylist([{"fault": str(error)}], schema=ANSWERED_SCHEMA)
        rows = [
            {"reject": json.dumps(asdict(reply))}
            if isinstance(reply, Reject)
            else {"outcome": json.dumps([int(item.id), reply])}
            for item, reply in zip(items, replies, strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=ANSWERED_SCHEMA)

    @cached_property
    def _policy(self) -> tuple[Any, Any]:
        from pipelines.evaluate.policy import load_asked

        return load_asked(self._job)


def answered_table(outcomes: Sequence[Outcome | Reject]) -> pa.Table:
    rows = [{"outcome": o.to_json()} if isinstance(o, Outcome) else {"reject": json.dumps(asdict(o))} for o in outcomes]
    return pa.Table.from_pylist(rows, schema=ANSWERED_SCHEMA)
