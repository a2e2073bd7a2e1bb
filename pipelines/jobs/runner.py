"""The job runner: one run key for one config, data and code; a run is reused, continued or started, never mixed up."""

import time
from collections.abc import Callable, Sequence
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

CONFIG_NAME = "config.yaml"  # in the folder of every run: its resolved config

METRICS_NAME = "metrics.jsonl"

CHECKPOINTS = "checkpoints"  # of a training, in its folder

PLUGINS = "plugins"  # the user's own code, in the run's folder

# Where a run is kept, who watches it and what else is tried do not change what it computes; data sets, plugins and
# models count by content, not by place.
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
    """Call `run(run_dir, key)` unless a finished run with this key is there, whose result is returned again.

    run_dir: `<storage>/<name>-<key[:8]>` unless the caller gives a fixed one; key: `run_key`, where it is known. An
    unfinished run gets the same folder again, so that `run` can continue in it; `fresh` removes what is there first.
    Raises UserError when another process writes the folder, or when it holds something that is not this run.
    """
    key = key or run_key(config, kind=kind, data=data_digests(config))
    run_dir = run_dir or _run_dir(config, key)
    with locked(run_dir):
        if fresh:
            remove_run(run_dir)
        job = _job_in(run_dir, key)
        if job.get("status") == "finished":
            console.print(f"{kind}: {run_dir} is finished already, its result is used again (--fresh starts anew)")
            return _as_it_lies(job["result"], run_dir)
        if job:
            console.print(continuing(kind, run_dir), soft_wrap=True, highlight=False)
        return _execute(config, run, run_dir, {"key": key, "kind": kind, "attempt": job.get("attempt", 0) + 1})


def finished_result(config: RunConfig, *, kind: str) -> Result | None:
    """Return what a finished run of this config, data and code has found, as `run_job` would; None where none is there.

    Raises UserError as `run_job` does for the folder.
    """
    key = run_key(config, kind=kind, data=data_digests(config))
    run_dir = _run_dir(config, key)
    job = _job_in(run_dir, key)
    return _as_it_lies(job["result"], run_dir) if job.get("status") == "finished" else None


def _as_it_lies(result: Result, run_dir: Path) -> Result:
    """Return a result whose paths are of the folder that it is read in: the run may have been moved since."""
    was = str(result.get("run_dir", run_dir))

    def moved(value: Any) -> Any:
        below = isinstance(value, str) and f"{value}/".startswith(f"{was}/")
        return f"{run_dir}{value[len(was) :]}" if below else value

    return {name: moved(value) for name, value in result.items()}


def _run_dir(config: RunConfig, key: str) -> Path:
    """Return `<storage>/<name>-<key[:8]>`, unless the run was given the folder of its bare name."""
    given = Path(config.storage) / config.name
    if (given / JOB_NAME).is_file() and read_json(given / JOB_NAME, what="the state of a run").get("key") == key:
        return given
    return given.with_name(f"{config.name}-{key[:8]}")


def _execute(config: RunConfig, run: Callable[[Path, str], Result], run_dir: Path, job: dict[str, Any]) -> Result:
    run_dir.mkdir(parents=True, exist_ok=True)
    job |= {"status": "running", "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_json(run_dir / JOB_NAME, job)
    kept = config.model_dump() | {"plugins": keep_plugins(config.plugins, run_dir)}
    write_text(run_dir / CONFIG_NAME, dump_yaml(kept))

    def interrupted() -> str:
        write_json(run_dir / JOB_NAME, job | {"status": "interrupted"})
        return f"the same command goes on in {run_dir}"

    with on_interruption(interrupted):
        return _finished(run, run_dir, job)


def keep_plugins(places: Sequence[str], run_dir: Path) -> list[str]:
    """Keep the text of plugins beside a run's config; return their names from there, and of modules their own.

    Where they lay when the run started may be a cluster's copy of the code, which goes with the cluster.
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


def _finished(run: Callable[[Path, str], Result], run_dir: Path, job: dict[str, Any]) -> Result:
    """Run to the end; its state says how it came out."""
    begun = time.monotonic()
    try:
        result = run(run_dir, job["key"])
    except Exception as error:
        if is_interrupted():
            raise
        mistake = unwrap_user_error(error)
        if mistake and job["attempt"] == 1 and not _has_trained(run_dir):
            remove_folder(run_dir)  # nothing was done: a mistake leaves no half-written run behind
        else:
            write_json(run_dir / JOB_NAME, job | {"status": "failed", "error": str(mistake or repr(error))})
        raise
    stop_if_interrupted()
    write_json(run_dir / JOB_NAME, job | {"status": "finished", "seconds": time.monotonic() - begun, "result": result})
    return result


def continuing(kind: str, run_dir: Path) -> str:
    """Say where a run goes on: a training, or what is made like one, at its newest checkpoint."""
    checkpoints = run_dir / CHECKPOINTS
    if kind != "train" and not checkpoints.is_dir():
        return f"{kind}: continuing in {run_dir}"
    manifests = checkpoints.glob(f"*/{CHECKPOINT_MANIFEST_NAME}")
    return f"{kind}: continuing in {run_dir} from step {max(map(_steps_done, manifests), default=0)}"


def _steps_done(manifest: Path) -> int:
    try:
        return int(read_json(manifest, what="a checkpoint")["progress"]["steps_done"])
    except (UserError, KeyError, TypeError, ValueError):
        return 0  # damaged: it is not gone on from


def _has_trained(run_dir: Path) -> bool:
    return any(path.stat().st_size for path in run_dir.rglob(METRICS_NAME))


def _job_in(run_dir: Path, key: str) -> dict[str, Any]:
    """Return the job.json of a run with this key, {} where there is no run yet."""
    if not run_dir.exists() or not contents(run_dir):
        return {}
    if not (run_dir / JOB_NAME).exists():
        raise UserError(f"{run_dir}: holds files, but no {JOB_NAME}: it is not a run; choose another folder")
    job = read_json(run_dir / JOB_NAME, what="the state of a run")
    if job["key"] != key:
        raise UserError(f"{run_dir}: holds a run with another config, data or code: --fresh replaces it")
    return dict(job)


def remove_run(run_dir: Path) -> None:
    """Delete a run. Raises UserError for a folder that is not one of ours."""
    if not run_dir.exists():
        return
    if contents(run_dir) and not (run_dir / JOB_NAME).exists():
        raise UserError(f"{run_dir}: has no {JOB_NAME}, so it is not a run and --fresh does not delete it")
    remove_folder(run_dir)


def run_key(config: RunConfig, *, kind: str, data: Sequence[str | None]) -> str:
    """Return the digest of all that decides a run's result: its kind, config, data and code. data: their digests."""
    code = [code_digest(), *(plugin.digest for plugin in read_plugins(config.plugins))]
    return digest([kind, config_identity(config), list(data), code])


def config_identity(config: RunConfig) -> dict[str, Any]:
    """Return what of a config decides a run's result, the same wherever model, data and storage lie.

    Raises UserError for a model's path that leads nowhere.
    """
    model = None if config.model is None else model_identity(config.model)
    return config.model_dump(exclude=NOT_IN_KEY) | {"model": model}


def data_digests(config: RunConfig) -> list[str | None]:
    """Return the digests of training and validation data. Raises UserError for a folder that was not prepared."""
    return [DatasetManifest.load(Path(d)).data_digest if d else None for d in (config.data, config.validation_data)]
