"""Tasks of `prepare`: stage the outcomes of raw rows, then write the kept rows as shards.

Tasks write rows to files in the work folder, which all nodes share, and return only counts and names.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pft_core.data import RECORD_SCHEMA, SOURCES, FilePart, Outcome, Reject, parse_rows, read_rows
from pft_core.errors import UserError
from pft_core.files import file_sha256
from pft_core.registry import load_code
from pipelines.jobs import explain_deaths, map_batches, unwrap_user_error
from pipelines.plugins import Plugin, load_plugins
from pipelines.progress import streamed

# Rows in a staged file, which is read whole for every shard that takes a row from it.
STAGED_ROWS = 4096
REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in ("row", "key_path", "reason", "detail")])
# One row per outcome: a record with its axis, or a reject with its reason. `row` is the place of either.
STAGED_SCHEMA = pa.schema([*RECORD_SCHEMA, ("item_key", pa.string()), ("axis_wording", pa.string()), *REJECT_SCHEMA])

T = TypeVar("T")
TASKS_RUN_HERE = 2


@dataclass(frozen=True)
class ReadTask:
    """File parts to read: one, or all of them if rows of different parts are joined."""

    source: str
    parts: tuple[FilePart, ...]
    axis: str | None
    joined: bool

    def outcomes(self) -> Iterator[tuple[str, Outcome]]:
        rows = chain.from_iterable(read_rows(part) for part in self.parts)
        if self.joined:
            joined: Iterator[tuple[str, Outcome]] = load_code(SOURCES[self.source].join)(rows, self.axis)
            return joined
        return parse_rows(rows, source=self.source, axis=self.axis)


@dataclass(frozen=True)
class GenerateTask:
    """A source that generates its rows, and the arguments of its `generate`."""

    source: str
    arguments: dict[str, Any]

    def outcomes(self) -> Iterator[tuple[str, Outcome]]:
        rows: Iterator[tuple[str, Outcome]] = load_code(SOURCES[self.source].generate)(**self.arguments)
        return rows


@dataclass(frozen=True)
class StageTask:
    """Input of one staging task. prefix: path of its output files, without number and suffix."""

    input: ReadTask | GenerateTask
    prefix: str
    plugins: tuple[Plugin, ...] = ()


@dataclass(frozen=True)
class ShardTask:
    """A shard's path, and its rows in order, as pairs of a staged file and row indices."""

    path: str
    pieces: tuple[tuple[str, list[int]], ...]


def stage(task: StageTask) -> dict[str, Any]:
    """Read and validate rows; return the staged files in order."""
    load_plugins(task.plugins)
    files = []
    for number, outcomes in enumerate(_chunks(task.input.outcomes(), STAGED_ROWS)):
        path = f"{task.prefix}-{number:05d}.parquet"
        rows = [_staged_row(where, outcome) for where, outcome in outcomes]
        pq.write_table(pa.Table.from_pylist(rows, schema=STAGED_SCHEMA), path)
        files.append(path)
    return {"files": files}


def _chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while chunk := list(islice(items, size)):
        yield chunk


def _staged_row(where: str, outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Reject):
        # A place or detail may contain half a surrogate pair, which cannot be written as UTF-8.
        return {name: value.encode(errors="replace").decode() for name, value in asdict(outcome).items()}
    wording = json.dumps(asdict(outcome.axis), ensure_ascii=False)
    return {**outcome.record.to_row(), "item_key": outcome.record.item_key, "axis_wording": wording, "row": where}


def write_shard(task: ShardTask) -> dict[str, Any]:
    """Write one shard; return its sha256, number of rows, and lengths of scenarios and options in characters."""
    pieces = [pq.read_table(path, columns=RECORD_SCHEMA.names).take(rows) for path, rows in task.pieces]
    records = pa.concat_tables(pieces).cast(RECORD_SCHEMA)
    pq.write_table(records, task.path, compression="zstd")
    options = pc.list_flatten(records["options"])
    return {
        "sha256": file_sha256(Path(task.path)),
        "rows": records.num_rows,
        "scenario_characters": pc.utf8_length(records["scenario"]).to_pylist(),
        "option_characters": pc.utf8_length(pc.struct_field(options, "text")).to_pylist(),
    }


def run_tasks(
    work: Callable[[T], dict[str, Any]], tasks: Sequence[T], *, num_workers: Callable[[], int], doing: str
) -> list[dict[str, Any]]:
    """Call `work` on every task; return the results in the order of the tasks.

    A few tasks run in this process, since Ray takes longer to start; more run on `num_workers()` Ray tasks. doing:
    what the progress shows. Raises UserError.
    """
    if len(tasks) <= TASKS_RUN_HERE:
        return [work(task) for task in tasks]
    return run_on_ray(work, tasks, num_workers=num_workers(), doing=doing)


def run_on_ray(
    work: Callable[[T], dict[str, Any]], tasks: Sequence[T], *, num_workers: int, doing: str
) -> list[dict[str, Any]]:
    """Call `work` on every task with Ray Data, as `run_tasks` does."""
    import ray.data

    results = map_batches(
        ray.data.range(len(tasks), override_num_blocks=len(tasks)),
        partial(_call, work=work, tasks=tasks),
        batch_size=1,
        compute=ray.data.TaskPoolStrategy(size=min(num_workers, len(tasks))),
    )
    with explain_deaths(f"a worker that was {doing}", num_workers=num_workers):
        rows = sorted(streamed(results, f"prepare: {doing}", len(tasks)), key=lambda row: row["number"])
    for row in rows:
        if row["fault"]:
            raise UserError(row["fault"])
    return [json.loads(row["result"]) for row in rows]


def _call(batch: dict[str, Any], *, work: Callable[[T], dict[str, Any]], tasks: Sequence[T]) -> dict[str, Any]:
    # A UserError is returned, since Ray would wrap a raised one in a page of traces.
    number = int(batch["id"][0])
    try:
        result, fault = work(tasks[number]), ""
    except Exception as error:
        mistake = unwrap_user_error(error)
        if mistake is None:
            raise
        result, fault = {}, str(mistake)
    return {"number": [number], "result": [json.dumps(result)], "fault": [fault]}
