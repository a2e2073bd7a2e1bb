"""MLflow off the step path: metrics go to a file in the run's folder, and a background thread delivers them.

`<run_dir>/metrics.jsonl` is both spool and record: one JSON object per step. A slow or dead server costs the run
nothing; missing metrics are delivered when the server is back, or by the next start of the run.
"""

import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from pft_core.data import DatasetManifest
from pft_core.errors import UserError
from pft_core.files import read_json, write_json
from pipelines.console import console
from pipelines.interruption import CLOSE_S, on_interruption
from pipelines.tracking.mlflow_run import (
    MlflowRun,
    RunSpec,
    StepMetrics,
    find_run,
    flatten,
    mask_credentials,
    opening,
    quiet_mlflow,
    sqlite_path,
    sqlite_uri,
)
from pipelines.tracking.origin import origin_tags
from pipelines.tracking.settings import TrackedConfig

SPOOL_NAME = "metrics.jsonl"  # in the folder of a run: the metrics of each step, a line each
START_NAME = "mlflow.json"  # in the folder of a run: its run in MLflow
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
DELIVER_EVERY_S = 2.0
LONGEST_PAUSE_S = 60.0
DRAIN_LIMIT_S = 30.0  # how long the end of a run waits for MLflow
LAST_ATTEMPT_S = 10.0
LOW_PRIORITY = 10
LOCAL_FAILURES = 3  # in a row, before a local file is reported

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker:
    """The only writer of a run's metrics. Only `finish` waits for the server, and only up to a limit.

    The server keeps the first values that it got for a step. A step repeated after a resume replaces its row in the
    spool, and is sent only if the server does not have it.
    """

    @classmethod
    def start(
        cls,
        *,
        uri: str | None,
        storage: Path,
        experiment: str,
        run_name: str,
        run_key: str,
        run_dir: Path,
        params: Mapping[str, Any],
        inputs: Sequence[tuple[Path, DatasetManifest]] = (),
        contexts: Sequence[str] = ("train", "validation"),
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
    ) -> Self:
        """Start or continue the MLflow run of this folder and key; deliver the rest of its spool.

        uri: default MLFLOW_TRACKING_URI, else SQLite in `storage`. params: the resolved config, nested. inputs: folders
        written by `pft prepare`, with their manifests. contexts: the use of each input. parent: run key of the run that
        contains this one. Raises UserError if MLflow cannot track to the URI.
        """
        started_ms, num_starts = count_start(run_dir, run_key)
        spec = RunSpec(
            uri=tracking_uri(uri, storage),
            experiment=experiment,
            run_name=run_name,
            run_key=run_key,
            started_ms=started_ms,
            num_starts=num_starts,
            params=flatten(params),
            inputs=list(inputs),
            tags={**origin_tags(), **(tags or {})},
            contexts=contexts,
            parent=parent,
        )
        return cls(spec, run_dir / SPOOL_NAME)

    def __init__(self, spec: RunSpec, spool: Path):
        self._spec = spec
        self._path = spool
        self._spool = spool.open("a", encoding="utf-8")
        cut_spool(spool)
        rows = read_metrics(spool.parent)
        self._last_step: int = rows[-1]["step"] if rows else -1
        self._rows = deque(rows)  # not yet known to be delivered
        self._artifacts: deque[tuple[Path, str]] = deque()
        self._status: Status | None = None
        self._given_up = False
        self._is_down = False  # at the last attempt
        self._error = ""
        self._failures = 0  # in a row
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step. Steps increase; a repeated step, as after a resume, drops all rows from it on."""
        if step <= self._last_step:
            self.rewind(step - 1)
        row = {"step": step, **metrics}
        with self._lock:
            self._spool.write(json.dumps(row) + "\n")
            self._spool.flush()
            self._rows.append(row)
            self._last_step = step

    def rewind(self, step: int) -> None:
        """Drop the rows after a step."""
        with self._lock:
            cut_spool(self._path, after=step)
            self._rows = deque(row for row in self._rows if row["step"] <= step)
            self._last_step = min(self._last_step, step)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Queue a file or folder for upload; it must not change until `finish`."""
        self._artifacts.append((path, folder))
        self._wake.set()

    def finish(self, status: Status, *, limit_s: float = DRAIN_LIMIT_S) -> None:
        """Deliver the rest and close the run; after `limit_s` seconds, give up and report what is missing.

        A server that did not answer the last attempt gets only one more.
        """
        self._status = status
        self._wake.set()
        self._thread.join(min(limit_s, LAST_ATTEMPT_S) if self._is_down else limit_s)
        if self._thread.is_alive() or self._given_up:
            self._given_up = True
            console.print(self._undelivered(), style="yellow", highlight=False)
        self._spool.close()

    def _work(self) -> None:
        # Importing MLflow takes seconds, while workers import too: they have priority.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_PRIORITY)
        run, pause_s = None, DELIVER_EVERY_S
        while not self._given_up:
            status = (
                self._status
            )  # read first, so that everything before `finish` is delivered before the run is closed
            try:
                run = run or MlflowRun(self._spec)
                self._deliver(run)
                if status is not None:
                    return run.close(status)
                pause_s, self._error, self._failures, self._is_down = DELIVER_EVERY_S, "", 0, False
            except Exception as error:  # the training continues whatever happens to the server or its client
                self._report(error)
                if run:  # when reopened, it asks for the server's last step and restarts the system metrics
                    run.release()
                run = None
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                # A missing parent run, or an SQLite file that is locked, does not mean that a server is down.
                self._given_up |= status is not None and self._is_down
                self._is_down = sqlite_path(self._spec.uri) is None and not isinstance(error, LookupError)
            self._wake.wait(pause_s if status is None else 1.0)
            self._wake.clear()

    def _deliver(self, run: MlflowRun) -> None:
        while rows := self._rows_after(run.delivered):
            run.send(rows)
        while self._artifacts:
            run.upload(*self._artifacts[0])
            self._artifacts.popleft()

    def _rows_after(self, step: int) -> list[StepMetrics]:
        with self._lock:
            while self._rows and self._rows[0]["step"] <= step:
                self._rows.popleft()
            return list(self._rows)

    def _report(self, error: Exception) -> None:
        """Report a server at the first failure. A local file is never unreachable, only locked by another process or
        still being created: it is reported, with the reason, if it fails several times in a row.
        """
        self._failures += 1
        self._error = mask_credentials(f"{type(error).__name__}: {error}").splitlines()[0]
        is_local = sqlite_path(self._spec.uri) is not None
        if self._failures == (LOCAL_FAILURES if is_local else 1) and self._status is None:
            fault = f"cannot be written now ({self._error})" if is_local else "not reachable now"
            text = f"{self._where()}: {fault}; metrics are kept in {self._path}"
            console.print(text, style="yellow", highlight=False)

    def _undelivered(self) -> str:
        artifacts = ", ".join(str(path) for path, _ in self._artifacts)
        return (
            f"{self._where()}: not delivered: {len(self._rows)} steps of metrics, which are kept in {self._path} and "
            f"sent by the next start of this run; {len(self._artifacts)} artifacts{': ' * bool(artifacts)}{artifacts}. "
            f"Last error: {self._error or 'none, the server is slow'}"
        )

    def _where(self) -> str:
        return f"MLflow at {mask_credentials(self._spec.uri)}"


@contextmanager
def tracked(
    config: TrackedConfig,
    run_dir: Path,
    key: str,
    *,
    inputs: Sequence[tuple[Path, DatasetManifest]],
    contexts: Sequence[str] = ("train", "validation"),
) -> Iterator[Tracker]:
    """Track a job while the block runs; it ends as FINISHED, FAILED, or KILLED if the user interrupts it."""
    tracker = Tracker.start(
        uri=config.tracking.uri,
        storage=Path(config.storage),
        experiment=config.tracking.experiment,
        run_name=run_dir.name,
        run_key=key,
        run_dir=run_dir,
        params=config.model_dump(),
        inputs=inputs,
        contexts=contexts,
        parent=config.tracking.parent,
    )

    def interrupted() -> str:
        tracker.finish("KILLED", limit_s=CLOSE_S)
        return ""

    with on_interruption(interrupted):
        try:
            yield tracker
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            tracker.finish(
                "KILLED" if isinstance(error, SystemExit) else "FAILED"
            )  # SystemExit: a search stops the trial early
            raise
        tracker.finish("FINISHED")


def close_killed(config: TrackedConfig, run_key: str) -> None:
    """Mark the run of a killed process, which could not do so itself, as KILLED. Raises MlflowException."""
    quiet_mlflow()
    from mlflow import MlflowClient

    uri = tracking_uri(config.tracking.uri, Path(config.storage))
    with opening(uri):
        client = MlflowClient(tracking_uri=uri)
        run = find_run(client, config.tracking.experiment, run_key)
        if run is not None and run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "KILLED")


def tracking_uri(uri: str | None, storage: Path) -> str:
    """Return the config's URI, else MLFLOW_TRACKING_URI, else SQLite in the storage folder. Raises UserError."""
    place = "tracking.uri" if uri else "MLFLOW_TRACKING_URI"
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return sqlite_uri(storage.resolve() / "mlflow.db")
    if uri.split(":")[0].split("+")[0] not in SCHEMES:
        raise UserError(
            f"{place}={mask_credentials(uri)}: not an MLflow tracking store: give sqlite:///FILE, http://HOST:PORT, "
            "https://HOST or postgresql://HOST/DATABASE"
        )
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri else f"sqlite:///{os.path.expanduser(path)}"


def count_start(run_dir: Path, run_key: str) -> tuple[int, int]:
    """Count a start; return the time of the run's first start (Unix time in ms) and the number of starts."""
    path = run_dir / START_NAME
    started_ms, num_starts = time.time_ns() // 1_000_000, 0
    if path.exists():
        earlier = read_json(path, what="the start of a tracked run")
        if earlier["run_key"] == run_key:
            started_ms, num_starts = earlier["started_ms"], earlier["num_starts"]
    write_json(path, {"run_key": run_key, "started_ms": started_ms, "num_starts": num_starts + 1})
    return started_ms, num_starts + 1


def read_metrics(run_dir: Path) -> list[StepMetrics]:
    """Return the metrics of a run, one row per step: `step` and its metrics."""
    with (run_dir / SPOOL_NAME).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.endswith("\n")]


def cut_spool(path: Path, *, after: float = float("inf")) -> None:
    """Drop the rows after a step, and an incomplete last line left by a kill."""
    kept = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n") or json.loads(line)["step"] > after:
                break
            kept += len(line)
    os.truncate(path, kept)
