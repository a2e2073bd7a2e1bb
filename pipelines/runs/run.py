"""Read one run from its folder; a damaged one becomes a run that says what is damaged."""

import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from pft_core.errors import UserError
from pft_core.files import read_json
from pipelines.config import JOB_NAME
from pipelines.jobs import CONFIG_NAME, is_locked
from pipelines.reporting import REPORT_NAMES
from pipelines.runs.damage import naming
from pipelines.runs.figures import figures_of_job, figures_of_report
from pipelines.runs.folders import Folder
from pipelines.tracking import START_NAME

TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"


@dataclass(frozen=True)
class Run:
    """One run. kind: the verb, or trial or cell for a part of a search or comparison.

    status: finished, running, interrupted, failed or damaged. note: why it failed or what is damaged. started: local
    time, as in ISO 8601. seconds: of the last attempt; None if unknown. changed: when its folder last changed (Unix
    time).
    """

    name: str
    path: str
    kind: str
    status: str
    bytes: int
    changed: float
    started: str | None = None
    seconds: float | None = None
    attempt: int | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    note: str | None = None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> dict[str, Any]:
        """The run as a row of the list: without its config."""
        return {key: value for key, value in asdict(self).items() if key not in ("changed", "config")}


def read_run(folder: Folder, storage: Path, *, with_config: bool = False) -> Run:
    """Read a run; its name is its path below the storage folder. with_config: also read the config of a job."""
    name = str(folder.path.relative_to(storage)) if folder.path.is_relative_to(storage) else str(folder.path)
    known: dict[str, Any] = {"name": name, "path": str(folder.path), "bytes": folder.size}
    try:
        with naming(folder.path):
            known["changed"] = folder.path.stat().st_mtime
        if folder.fault:
            raise UserError(folder.fault)
        fields = of_job(folder.path, with_config=with_config) if JOB_NAME in folder.sizes else of_report(folder)
        return Run(**known, **fields)
    except UserError as error:
        note = str(error).partition("\n")[0].replace(f"{folder.path}/", "")
        return Run(**{"changed": 0.0, **known}, kind="?", status="damaged", note=note)


def of_job(run_dir: Path, *, with_config: bool) -> dict[str, Any]:
    """Return the fields of a run with a job.json. Raises UserError if a file is damaged."""
    with naming(run_dir / JOB_NAME):
        job = read_json(run_dir / JOB_NAME, what="the state of a run")
        kind = ":".join(job["kind"].split(":")[: 2 if job["kind"].startswith("tune:") else 1])
        result = dict(job.get("result") or {})
        status = job_status(job["status"], is_held=is_locked(run_dir))
        started = datetime.strptime(job["started"], TIME_FORMAT).timestamp()
    with naming(run_dir / CONFIG_NAME):
        config = dict(yaml.safe_load((run_dir / CONFIG_NAME).read_text(encoding="utf-8"))) if with_config else {}
    was_killed = status == "interrupted" and job["status"] == "running"
    return {
        "kind": kind,
        "status": status,
        "started": job["started"],
        "seconds": time.time() - started if status == "running" else job.get("seconds"),
        "attempt": job.get("attempt"),
        "figures": figures_of_job(run_dir, kind, result),
        "note": "its process was killed" if was_killed else job.get("error"),
        "config": config,
    }


def job_status(written: str, *, is_held: bool) -> str:
    """Return finished, running, interrupted or failed. A run that is not finished runs only while its lock is held."""
    if written == "finished":
        return written
    if is_held:
        return "running"
    return "interrupted" if written == "running" else written


def of_report(folder: Folder) -> dict[str, Any]:
    """Return the fields of an evaluation or a comparison, which have a report but no job.json."""
    if REPORT_NAMES[0] not in folder.sizes:
        return {"kind": "evaluate", "status": "running" if is_locked(folder.path) else "interrupted"}
    path = folder.path / REPORT_NAMES[0]
    with naming(path):
        report = read_json(path, what="the report of a run")
        is_comparison = "suite" in report or "compared" in report
        return {
            "kind": "compare" if is_comparison else "evaluate",
            "status": "running" if is_locked(folder.path) else "finished",
            "started": started_of(folder, report),
            "seconds": sum(report["timings"].values()),
            "figures": figures_of_report(report),
            "config": dict(report["config"]),
        }


def started_of(folder: Folder, report: dict[str, Any]) -> str:
    """Return when the run of a report started: as it was tracked, or its seconds before the report was written."""
    if START_NAME in folder.sizes:
        moment = read_json(folder.path / START_NAME, what="the start of a tracked run")["started_ms"] / 1000
    else:
        moment = (folder.path / REPORT_NAMES[0]).stat().st_mtime - sum(report["timings"].values())
    return datetime.fromtimestamp(moment, UTC).astimezone().strftime(TIME_FORMAT)
