"""One run on an MLflow server: find or create it, send metrics and artifacts, close it.

Every call may block for a long time or raise, so only the tracker's background thread makes them.
"""

import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pft_core.data import DatasetManifest
from pipelines.tracking.settings import ARTIFACTS_NAME

StepMetrics = dict[str, Any]  # "step" and the metrics of that step
POINTS_PER_BATCH = 1000  # MLflow's own limit, like the next two
ENTRIES_PER_BATCH = 100
MAX_PARAM_LENGTH = 6000
SYSTEM_PREFIX = "system/"


@dataclass(frozen=True)
class RunSpec:
    """Identity and description of a run.

    run_key and started_ms (Unix time) identify it: after --fresh, a run has the same key but another start time.
    num_starts: 1 plus the number of continuations. params: flat. inputs: prepared folders and their manifests.
    contexts: the use of each input. parent: run key of the parent run.
    """

    uri: str
    experiment: str
    run_name: str
    run_key: str
    started_ms: int
    num_starts: int
    params: Mapping[str, str]
    inputs: Sequence[tuple[Path, DatasetManifest]]
    tags: Mapping[str, str]
    contexts: Sequence[str] = ("train", "validation")
    parent: str | None = None


class MlflowRun:
    """An open run. delivered: the last step that the server has; -1 before the first."""

    def __init__(self, spec: RunSpec):
        quiet_mlflow()
        from mlflow import MlflowClient
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        with opening(spec.uri):
            self._client = MlflowClient(tracking_uri=spec.uri)
            run = self._find_or_create(spec)
        self._id = run.info.run_id
        self._started_ms = spec.started_ms
        # Only the protobuf form of a run has the step of its latest metrics without a query of their history.
        steps = [m.step for m in run.data.to_proto().metrics if not m.key.startswith(SYSTEM_PREFIX)]
        self.delivered: int = max(steps, default=-1)
        self._client.update_run(self._id, status="RUNNING")
        self._describe(spec, run.data.params)
        self._monitor = SystemMetricsMonitor(self._id, resume_logging=True, tracking_uri=spec.uri)
        self._monitor.start()

    def _find_or_create(self, spec: RunSpec) -> Any:
        experiment = self._client.get_experiment_by_name(spec.experiment)
        if experiment is None:
            artifacts = artifact_location(spec.uri)
            experiment_id = self._client.create_experiment(spec.experiment, artifact_location=artifacts)
        else:
            experiment_id = experiment.experiment_id
        # Search first: the server may have created the run although its reply was lost.
        query = f"tags.run_key = '{spec.run_key}' and attributes.start_time = {spec.started_ms}"
        runs = self._client.search_runs([experiment_id], filter_string=query, max_results=1)
        if runs:
            return runs[0]
        tags = {**spec.tags, "run_key": spec.run_key, **self._link(spec.experiment, spec.parent)}
        return self._client.create_run(experiment_id, spec.started_ms, tags, spec.run_name)

    def _link(self, experiment: str, parent: str | None) -> dict[str, str]:
        """Return the tag that nests a run below the newest run of its parent; raise LookupError until that exists."""
        if parent is None:
            return {}
        run = find_run(self._client, experiment, parent)
        if run is None:
            raise LookupError(f"the parent run with the key {parent} does not exist yet")
        return {"mlflow.parentRunId": run.info.run_id}

    def _describe(self, spec: RunSpec, known: Mapping[str, str]) -> None:
        from mlflow.entities import DatasetInput, InputTag, Param, RunTag

        params = [Param(key, value) for key, value in spec.params.items() if key not in known]
        # A param cannot change: a value that differs in a later start of the run becomes a tag.
        tags = [RunTag(f"changed.{k}", v) for k, v in spec.params.items() if known.get(k, v) != v]
        tags.append(RunTag("resume_count", str(spec.num_starts - 1)))
        for start in range(0, max(len(params), len(tags)), ENTRIES_PER_BATCH // 2):
            part = slice(start, start + ENTRIES_PER_BATCH // 2)
            self._client.log_batch(self._id, params=params[part], tags=tags[part])
        datasets = [
            DatasetInput(dataset_entity(folder, manifest), [InputTag("mlflow.data.context", context)])
            for (folder, manifest), context in zip(spec.inputs, spec.contexts, strict=False)
        ]
        self._client.log_inputs(self._id, datasets=datasets)

    def send(self, rows: Sequence[StepMetrics]) -> None:
        """Log rows in batches of whole steps, each a transaction, so that `delivered` never points into a step."""
        from mlflow.entities import Metric

        for batch in whole_steps(rows):
            points = [
                # The time derives from the step: a batch sent again after a lost reply hits the same primary keys.
                Metric(mlflow_name(name), value, self._started_ms + row["step"], row["step"])
                for row in batch
                for name, value in row.items()
                if name != "step"
            ]
            self._client.log_batch(self._id, metrics=points)
            self.delivered = batch[-1]["step"]

    def upload(self, path: Path, folder: str) -> None:
        """Upload a file, or a folder under its own name, to an artifact folder of the run; "" is the root."""
        self._client.log_artifact(self._id, str(path), folder or None)

    def close(self, status: str) -> None:
        """Set the final status: FINISHED, FAILED or KILLED."""
        self.release()
        self._client.set_terminated(self._id, status)

    def release(self) -> None:
        """Stop the system metrics; the run can be reopened."""
        self._monitor.finish()


def find_run(client: Any, experiment: str, run_key: str) -> Any | None:
    """Return the newest run with this key, None if there is none."""
    entity = client.get_experiment_by_name(experiment)
    runs = entity and client.search_runs([entity.experiment_id], filter_string=f"tags.run_key = '{run_key}'")
    return runs[0] if runs else None


def quiet_mlflow() -> None:
    """Silence MLflow, turn off its telemetry, and cut its retries, since the tracker has its own."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the URI may contain credentials
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    import mlflow  # noqa: F401  its import sets log levels, so it precedes ours

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("mlflow.system_metrics", "mlflow.store.db.utils"):  # the last with a traceback, for a full disk
        logging.getLogger(name).setLevel(logging.CRITICAL)


def whole_steps(rows: Sequence[StepMetrics]) -> Iterator[list[StepMetrics]]:
    """Cut rows into batches of at most POINTS_PER_BATCH metrics, never inside a row."""
    batch: list[StepMetrics] = []
    for row in rows:
        if batch and sum(len(r) - 1 for r in batch) + len(row) - 1 > POINTS_PER_BATCH:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def dataset_entity(folder: Path, manifest: DatasetManifest) -> Any:
    """Return MLflow's entity for a prepared data set: digest, folder and counts."""
    from mlflow.entities import Dataset

    counts = {"num_rows": manifest.rows_out, "num_pairs": manifest.pairs_out, "num_rejected": manifest.rejected}
    return Dataset(
        name=folder.name,
        digest=manifest.data_digest,
        source_type="local",
        source=json.dumps({"uri": str(folder.resolve())}),
        profile=json.dumps(counts),
    )


@contextmanager
def opening(uri: str) -> Iterator[None]:
    """Let one process at a time open an SQLite store: two that create its tables together break it for good.

    A full disk does so too, so a new store that cannot be opened is removed.
    """
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    with path.with_name(f".{path.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        is_new = not path.exists() or not path.stat().st_size
        try:
            yield
        except LookupError:
            raise  # the store is intact and others may use it: only the parent run is missing
        except BaseException:
            if is_new:
                path.unlink(missing_ok=True)
            raise
        finally:
            _remove_stray_folder(uri)


def _remove_stray_folder(uri: str) -> None:
    """Remove the folder that MLflow creates for an SQLite file from the still quoted URI, if it is empty."""
    stray = Path(uri.removeprefix("sqlite:///")).parent
    if stray != Path(unquote(str(stray))):
        with suppress(OSError):
            os.removedirs(stray)


def sqlite_uri(path: Path) -> str:
    """Return the quoted URI of an SQLite file: SQLAlchemy reads `%41` as an A, and `?` as the end of the path."""
    return f"sqlite:///{quote(str(path))}"


def sqlite_path(uri: str) -> Path | None:
    """Return the file of an SQLite URI; None for another store."""
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else Path(unquote(path.partition("?")[0]))


def artifact_location(uri: str) -> str | None:
    """Return the artifact folder beside the file of an SQLite store; None for a server, which decides itself."""
    path = sqlite_path(uri)
    return None if path is None else (path.resolve().parent / ARTIFACTS_NAME).as_uri()


def mlflow_name(name: str) -> str:
    """Replace the characters that MLflow does not allow in a name."""
    return re.sub(r"[^\w./ :-]", "_", name)


def flatten(config: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """Return a nested config as dotted keys and strings, cut to the length that MLflow stores, without credentials."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, prefix=f"{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[mlflow_name(name)] = mask_credentials(text)[:MAX_PARAM_LENGTH]
    return flat


def mask_credentials(text: str) -> str:
    """Replace the user and password of every URI in a text by ***."""
    return re.sub(r"//[^/@\s]+@", "//***@", text)
