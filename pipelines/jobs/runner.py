"""The job runner: reuse, continue or start the run of a run key, which stands for one config, data and code."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pft_core.data import DatasetManifest
from pft_core.errors import UserError
from pft_core.files import contents, digest, read_json, remove_folder, write_json, write_text
from pft_core.policies import model_identity
from pft_core.training import CHECKPOINT_MANIFEST_NAME
from pipelines.config import JOB_NAME, RunConfig
from pipelines.console import console
from pipelines.interruption import is_interrupted, on_interruption, stop_if_interrupted
from pipelines.jobs.lock import locked
from pipelines.jobs.running_code import code_digest
from pipelines.jobs.user_errors import unwrap_user_error
from pipelines.plugins import read_plugins
from pipelines.validated_yaml import dump_yaml

CONFIG_NAME = "config.yaml"  # the resolved config, in the folder of every run
METRICS_NAME = "metrics.jsonl"
LOG_NAME = "run.log"  # the messages of a run, in its folder
CHECKPOINTS = "checkpoints"  # folder of a training's checkpoints, in the run's folder
PLUGINS = "plugins"  # folder of the user's own code, in the run's folder

# Storage, tracking and search settings do not change the result of a run. Data sets, plugins and models count by
# content, not by path.
NOT_IN_KEY = {"storage", "tracking", "data", "validation_data", "search", "plugins"}

Result = dict[str, Any]


def run_job(
    config: RunConfig,
    run: Callable[[Path, str], Result],
    *,
    fresh: bool,
    kind: str,
    run_dir: Path | None = None,
    key: str | None = None,
) -> Result:
    """Call `run(run_dir, key)`, or return the result of a finished run with this key.

    run_dir: default `<storage>/<name>-<key[:8]>`. key: the `run_key`, if known. An unfinished run gets the same folder
    again, so that `run` can continue in it. fresh: whether to delete the folder first.
    Raises UserError if another process writes the folder, or if it holds something other than this run.
    """
    key = key or run_key(config, kind=kind, data=data_digests(config))
    run_dir = run_dir or _run_dir(config, key)
    with locked(run_dir):
        if fresh:
            remove_run(run_dir)
        job = _read_job(run_dir, key)
        if job.get("status") == "finished":
            console.print(f"{kind}: {run_dir} is already finished: reusing its result (--fresh starts over)")
            return _relocated(job["result"], run_dir)
        if job:
            console.print(continue_message(kind, run_dir), soft_wrap=True, highlight=False)
        return _execute(config, run, run_dir, {"key": key, "kind": kind, "attempt": job.get("attempt", 0) + 1})


def finished_result(config: RunConfig, *, kind: str) -> Result | None:
    """Return the result of a finished run of this config, data and code; None if there is none.

    Raises UserError about the folder as `run_job` does.
    """
    run_dir, job = expected_run(config, run_key(config, kind=kind, data=data_digests(config)))
    return _relocated(job["result"], run_dir) if job.get("status") == "finished" else None


def expected_run(config: RunConfig, key: str) -> tuple[Path, Result]:
    """Return the folder that a run of this key gets, and its job.json as it is now; {} if the run is new.

    Raises UserError about the folder as `run_job` does.
    """
    run_dir = _run_dir(config, key)
    return run_dir, _read_job(run_dir, key)


def _relocated(result: Result, run_dir: Path) -> Result:
    """Return a result with its paths moved to this folder, since the run may have been moved."""
    was = str(result.get("run_dir", run_dir))

    def moved(value: Any) -> Any:
        below = isinstance(value, str) and f"{value}/".startswith(f"{was}/")
        return f"{run_dir}{value[len(was) :]}" if below else value

    return {name: moved(value) for name, value in result.items()}


def _run_dir(config: RunConfig, key: str) -> Path:
    """Return `<storage>/<name>-<key[:8]>`, or `<storage>/<name>` if that folder holds this run."""
    plain = Path(config.storage) / config.name
    if (plain / JOB_NAME).is_file() and read_json(plain / JOB_NAME, what="the state of a run").get("key") == key:
        return plain
    return plain.with_name(f"{config.name}-{key[:8]}")


def _execute(config: RunConfig, run: Callable[[Path, str], Result], run_dir: Path, job: dict[str, Any]) -> Result:
    run_dir.mkdir(parents=True, exist_ok=True)
    job |= {"status": "running", "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_json(run_dir / JOB_NAME, job)
    kept = config.model_dump() | {"plugins": keep_plugins(config.plugins, run_dir)}
    write_text(run_dir / CONFIG_NAME, dump_yaml(kept))

    def interrupted() -> str:
        write_json(run_dir / JOB_NAME, job | {"status": "interrupted"})
        return f"run the same command to continue in {run_dir}"

    with on_interruption(interrupted), console.copied_to(partial(write_log, run_dir)):
        return _run_to_end(run, run_dir, job)


def write_log(run_dir: Path, text: str) -> None:
    """Add a message to the run's log, with the time; a message that cannot be written does not end the run."""
    with suppress(OSError), (run_dir / LOG_NAME).open("a", encoding="utf-8", errors="replace") as log:
        log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n")


def keep_plugins(places: Sequence[str], run_dir: Path) -> list[str]:
    """Copy plugin files into the run's folder; return their relative paths there, and the names of modules.

    The original files may lie in a cluster's copy of the code, which is deleted with the cluster.
    """
    kept = []
    for plugin in read_plugins(places):
        if plugin.source is None:
            kept.append(plugin.place)
            continue
        kept.append(f"{PLUGINS}/{plugin.digest[:8]}/{Path(plugin.place).name}")
        (run_dir / kept[-1]).parent.mkdir(parents=True, exist_ok=True)
        write_text(run_dir / kept[-1], plugin.source)
    return kept


def _run_to_end(run: Callable[[Path, str], Result], run_dir: Path, job: dict[str, Any]) -> Result:
    """Run to the end, and record in job.json whether it finished or failed."""
    started = time.monotonic()
    try:
        result = run(run_dir, job["key"])
    except Exception as error:
        if is_interrupted():
            raise
        mistake = unwrap_user_error(error)
        if mistake and job["attempt"] == 1 and not _has_trained(run_dir):
            remove_folder(run_dir)  # nothing was computed: leave no half-written run behind
        else:
            write_json(run_dir / JOB_NAME, job | {"status": "failed", "error": str(mistake or repr(error))})
        raise
    stop_if_interrupted()
    write_json(
        run_dir / JOB_NAME, job | {"status": "finished", "seconds": time.monotonic() - started, "result": result}
    )
    return result


def continue_message(kind: str, run_dir: Path) -> str:
    """Return where a run continues; a run with checkpoints continues from the newest."""
    if kind != "train" and not (run_dir / CHECKPOINTS).is_dir():
        return f"{kind}: continuing in {run_dir}"
    return f"{kind}: continuing in {run_dir} from step {steps_saved(run_dir)}"


def steps_saved(run_dir: Path) -> int:
    """Return the steps of a run's newest checkpoint; 0 without one."""
    manifests = (run_dir / CHECKPOINTS).glob(f"*/{CHECKPOINT_MANIFEST_NAME}")
    return max(map(_steps_done, manifests), default=0)


def _steps_done(manifest: Path) -> int:
    try:
        return int(read_json(manifest, what="a checkpoint")["progress"]["steps_done"])
    except (UserError, KeyError, TypeError, ValueError):
        return 0  # damaged, so the run does not continue from it


def _has_trained(run_dir: Path) -> bool:
    return any(path.stat().st_size for path in run_dir.rglob(METRICS_NAME))


def _read_job(run_dir: Path, key: str) -> dict[str, Any]:
    """Return the job.json of a run with this key, {} if there is no run yet. Raises UserError for another run."""
    if not run_dir.exists() or not contents(run_dir):
        return {}
    if not (run_dir / JOB_NAME).exists():
        raise UserError(f"{run_dir}: has files but no {JOB_NAME}, so it is not a run: choose another folder")
    job = read_json(run_dir / JOB_NAME, what="the state of a run")
    if job["key"] != key:
        raise UserError(f"{run_dir}: holds a run with another config, data or code: replace it with --fresh")
    return dict(job)


def remove_run(run_dir: Path) -> None:
    """Delete a run. Raises UserError for a folder that is not a run."""
    if not run_dir.exists():
        return
    if contents(run_dir) and not (run_dir / JOB_NAME).exists():
        raise UserError(f"{run_dir}: has no {JOB_NAME}, so it is not a run and --fresh does not delete it")
    remove_folder(run_dir)


def run_key(config: RunConfig, *, kind: str, data: Sequence[str | None]) -> str:
    """Return the digest of all that determines a run's result: kind, config, data digests and code."""
    code = [code_digest(), *(plugin.digest for plugin in read_plugins(config.plugins))]
    return digest([kind, config_identity(config), list(data), code])


def config_identity(config: RunConfig) -> dict[str, Any]:
    """Return the part of a config that determines a run's result, independent of all paths.

    Raises UserError if the model's path does not exist.
    """
    model = None if config.model is None else model_identity(config.model)
    return config.model_dump(exclude=NOT_IN_KEY) | {"model": model}


def data_digests(config: RunConfig) -> list[str | None]:
    """Return the digests of training and validation data. Raises UserError if `pft prepare` did not write a folder."""
    return [DatasetManifest.load(Path(d)).data_digest if d else None for d in (config.data, config.validation_data)]
