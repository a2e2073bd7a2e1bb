"""Mark the runs of workers that end together with their interrupted driver."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pft_core.errors import UserError
from pft_core.files import read_json, write_json
from pipelines.interruption import on_interruption, stop_ray
from pipelines.jobs.lock import locked
from pipelines.jobs.runner import JOB_NAME
from pipelines.tracking import TrackedConfig, close_killed

LOCKED_S = 1.0  # for how long a dying process may still hold its lock
LOOK_EVERY_S = 0.1


@contextmanager
def mark_interrupted_workers(folder: Path, config: TrackedConfig) -> Iterator[None]:
    """If the block is interrupted, end its Ray work and mark the unfinished runs in a folder as interrupted.

    config: names the MLflow store that tracks these runs.
    """

    def interrupted() -> str:
        stop_ray()
        _mark(folder, config)
        return ""

    with on_interruption(interrupted):
        yield


def _mark(folder: Path, config: TrackedConfig) -> None:
    until = time.monotonic() + LOCKED_S
    waiting = dict(_unfinished(folder))
    while waiting and time.monotonic() < until:
        for run_dir, job in list(waiting.items()):
            with suppress(UserError), locked(run_dir):  # another process may be writing it
                write_json(run_dir / JOB_NAME, job | {"status": "interrupted"})
                del waiting[run_dir]
                close_killed(config, job["key"])
        time.sleep(LOOK_EVERY_S)


def _unfinished(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in folder.glob(f"*/{JOB_NAME}"):
        with suppress(UserError):
            job = read_json(path, what="the state of a run")
            if job["status"] == "running":
                yield path.parent, job
