"""Ask items on a pool of Ray Data actors.

Items go to the actors in fixed groups, so the result does not depend on the number of actors or on killed ones.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import ray
import ray.data

from pft_core.data import Reject
from pft_core.errors import UserError
from pft_core.evaluation import Outcome, Reply, TaskItem
from pipelines.console import console
from pipelines.evaluate.answering_actors import Item, PolicyActor, TaskActor, items_table, task_table
from pipelines.evaluate.answering_job import AnsweringJob
from pipelines.jobs import explain_deaths, map_batches, refuse_missing_resources
from pipelines.progress import streamed

ITEMS_PER_GROUP = 64

T = TypeVar("T")
Answers = tuple[list[Outcome], list[Reject]]


def ask_on_ray(items: Sequence[Item], job: AnsweringJob, *, num_workers: int) -> Answers:
    """Ask all items on a pool of actors. Raises UserError if the cluster is too small or an actor met a user error."""
    return ask_all_on_ray([(items, job)], num_workers=num_workers)[0]


def ask_all_on_ray(requests: Sequence[tuple[Sequence[Item], AnsweringJob]], *, num_workers: int) -> list[Answers]:
    """Ask several policies in turn on one pool, since an actor's imports take longer than loading a policy."""
    groups: list[Any] = []
    for number, (items, _) in enumerate(requests):
        first = sum(group.num_rows for group in groups)
        groups += [items_table(chunk, first + start, number) for start, chunk in in_groups(items)]
    rows = on_ray(PolicyActor, groups, [job for _, job in requests], num_workers=num_workers)
    return [read_answers([row for row in rows if row["job"] == number]) for number in range(len(requests))]


def ask_task_on_ray(
    items: Sequence[TaskItem], job: AnsweringJob, *, num_workers: int
) -> tuple[dict[int, Reply], list[Reject]]:
    """Ask the items of a task in the same way; return replies by item number, and rejects."""
    groups = [task_table(chunk, first) for first, chunk in in_groups(items)]
    return read_replies(items, on_ray(TaskActor, groups, [job], num_workers=num_workers) if items else [])


def in_groups(items: Sequence[T]) -> Iterator[tuple[int, Sequence[T]]]:
    """Split items into groups, each with the number of its first item."""
    for first in range(0, len(items), ITEMS_PER_GROUP):
        yield first, items[first : first + ITEMS_PER_GROUP]


def on_ray(
    actor: Any, groups: Sequence[Any], jobs: Sequence[AnsweringJob], *, num_workers: int
) -> list[dict[str, Any]]:
    """Give every group (a table) to an actor of a pool; return all rows in the order of the items.

    Raises UserError if the cluster has no room, if an actor met a user error, and if actors are killed repeatedly.
    """
    resources = {"CPU": 1, "GPU": 1 if any(job.use_gpu for job in jobs) else 0}
    refuse_missing_resources("num_workers", num_workers, resources)
    num_items = sum(group.num_rows for group in groups)
    console.print(f"evaluating {num_items} items with {num_workers} workers")
    tokens = max(job.settings.tokens_per_batch for job in jobs)
    with explain_deaths("an evaluation worker", tokens_per_batch=tokens, num_workers=num_workers):
        tables = map_batches(
            ray.data.from_arrow(list(groups)),
            actor,
            fn_constructor_args=list(jobs),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(num_workers, len(groups))),
            num_cpus=resources["CPU"],
            num_gpus=resources["GPU"],
        )
        return in_order(list(streamed(tables, "evaluate", num_items)), num_items)


def in_order(rows: Sequence[dict[str, Any]], num_items: int) -> list[dict[str, Any]]:
    """Sort rows by the numbers of their items, whatever order or retries the groups had.

    Raises UserError if an actor met a user error.
    """
    refuse_faults(rows)
    rows = sorted(rows, key=lambda row: row["place"])
    assert [row["place"] for row in rows] == list(range(num_items)), "each item is answered once"
    return rows


def read_answers(rows: Sequence[Mapping[str, Any]]) -> Answers:
    """Return the outcomes and rejects in the actors' rows. Raises UserError if an actor met a user error."""
    refuse_faults(rows)
    outcomes = [Outcome.from_json(row["outcome"]) for row in rows if row["outcome"]]
    rejects = [Reject(**json.loads(row["reject"])) for row in rows if row["reject"]]
    return outcomes, rejects


def read_replies(items: Sequence[TaskItem], rows: Sequence[Mapping[str, Any]]) -> tuple[dict[int, Reply], list[Reject]]:
    """Return replies and rejects like read_answers, for a task; a reject gets the id of its item."""
    outcomes = {row["place"]: json.loads(row["outcome"]) for row in rows if row["outcome"]}
    replies = {place: reply if isinstance(reply, str) else tuple(reply) for place, reply in outcomes.items()}
    rejects = [Reject(**json.loads(row["reject"])) for row in rows if row["reject"]]
    return replies, [replace(reject, row=items[int(reject.row)].id) for reject in rejects]


def refuse_faults(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError if an actor met a user error."""
    if faults := sorted({row["fault"] for row in rows if row["fault"]}):
        raise UserError(faults[0])
