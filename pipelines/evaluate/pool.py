"""Ask items on a pool of Ray Data actors.

Items go to the actors in fixed groups, so the result does not depend on the number of actors or on killed ones.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import ray.data

from pft_core.data import Reject
from pft_core.errors import UserError
from pft_core.evaluation import Outcome, Reply, TaskItem
from pipelines.console import console
from pipelines.evaluate.answering_actors import Item, PolicyActor, TaskActor, in_groups, items_table, task_table
from pipelines.evaluate.answering_job import AnsweringJob
from pipelines.evaluate.kept_groups import KeptGroups
from pipelines.jobs import explain_deaths, map_batches, refuse_missing_resources
from pipelines.progress import counted

Answers = tuple[list[Outcome], list[Reject]]


def ask_on_ray(items: Sequence[Item], job: AnsweringJob, *, num_workers: int) -> Answers:
    """Ask all items on a pool of actors. Raises UserError if the cluster is too small or an actor met a user error."""
    return ask_all_on_ray([(items, job)], num_workers=num_workers)[0]


def ask_all_on_ray(
    requests: Sequence[tuple[Sequence[Item], AnsweringJob]], *, num_workers: int, kept: Sequence[KeptGroups] = ()
) -> list[Answers]:
    """Ask several policies in turn on one pool, since an actor's imports take longer than loading a policy.

    kept: for each request, where its finished groups are kept; none keeps nothing.
    """
    groups = [
        items_table(chunk, first, number)
        for number, (items, job) in enumerate(requests)
        for first, chunk in in_groups(items, on_cpu=not job.use_gpu)
    ]
    rows = on_ray(PolicyActor, groups, [job for _, job in requests], num_workers=num_workers, kept=kept)
    return [read_answers([row for row in rows if row["job"] == number]) for number in range(len(requests))]


def ask_task_on_ray(
    items: Sequence[TaskItem], job: AnsweringJob, *, num_workers: int, kept: Sequence[KeptGroups] = ()
) -> tuple[dict[int, Reply], list[Reject]]:
    """Ask the items of a task in the same way; return replies by item number, and rejects."""
    groups = [task_table(chunk, first) for first, chunk in in_groups(items, on_cpu=not job.use_gpu)]
    return read_replies(items, on_ray(TaskActor, groups, [job], num_workers=num_workers, kept=kept))


def on_ray(
    actor: Any,
    groups: Sequence[pa.Table],
    jobs: Sequence[AnsweringJob],
    *,
    num_workers: int,
    kept: Sequence[KeptGroups] = (),
) -> list[dict[str, Any]]:
    """Give every group that is not finished to an actor of a pool; return all rows in the order of the items.

    Raises UserError if the cluster has no room, if an actor met a user error, and if actors are killed repeatedly.
    """
    finished = {numbers_of(group)[0]: read for group in groups if (read := read_group(group, kept)) is not None}
    remaining = {number: group for group in groups if (number := numbers_of(group)[0]) not in finished}
    say_what_is_asked(remaining.values(), finished.values(), num_workers)
    tables = list(finished.values())
    for table in answered(actor, list(remaining.values()), jobs, num_workers=num_workers):
        if kept:
            number = numbers_of(table)[0]
            kept[number[0]].keep(remaining[number], table)
        tables.append(table)
    say_what_was_reused(tables)
    return in_order([row for table in tables for row in table.to_pylist()], groups)


def read_group(group: pa.Table, kept: Sequence[KeptGroups]) -> pa.Table | None:
    """Return the kept answers to a group, None if there are none."""
    return kept[numbers_of(group)[0][0]].read(group) if kept else None


def numbers_of(table: pa.Table) -> list[tuple[int, int]]:
    """Return job and place of each row."""
    return list(zip(table["job"].to_pylist(), table["place"].to_pylist(), strict=True))


def say_what_is_asked(remaining: Iterable[pa.Table], finished: Iterable[pa.Table], num_workers: int) -> None:
    num_asked, num_finished = (sum(table.num_rows for table in tables) for tables in (remaining, finished))
    earlier = f"; {num_finished} more were answered before this evaluation was interrupted" if num_finished else ""
    console.print(f"evaluating {num_asked} items with {num_workers} workers{earlier}", soft_wrap=True)


def say_what_was_reused(tables: Sequence[pa.Table]) -> None:
    """Print for how many items the base model's answers were kept from an earlier evaluation."""
    if num_reused := sum(reused is True for table in tables for reused in table["reused"].to_pylist()):
        console.print(
            f"{num_reused} items: the base model's answers were reused from an earlier evaluation of this data",
            soft_wrap=True,
        )


def answered(
    actor: Any, groups: Sequence[pa.Table], jobs: Sequence[AnsweringJob], *, num_workers: int
) -> Iterator[pa.Table]:
    """Yield the answers to each group when an actor has finished it, in any order. Raises UserError like `on_ray`."""
    if not groups:
        return
    resources = {"CPU": 1, "GPU": 1 if any(job.use_gpu for job in jobs) else 0}
    refuse_missing_resources("num_workers", num_workers, resources)
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
        yield from counted(tables, "evaluate", sum(group.num_rows for group in groups))


def in_order(rows: Sequence[dict[str, Any]], groups: Sequence[pa.Table]) -> list[dict[str, Any]]:
    """Sort rows by the numbers of their items, whatever order or retries the groups had.

    Raises UserError if an actor met a user error.
    """
    refuse_faults(rows)
    rows = sorted(rows, key=lambda row: (row["job"], row["place"]))
    numbers = [number for group in groups for number in numbers_of(group)]
    assert [(row["job"], row["place"]) for row in rows] == numbers, "each item is answered once"
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
