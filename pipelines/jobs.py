"""The job runner: one run key for one config, data and code; a run is reused, continued or started, never mixed up."""

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import yaml

from pft_core.artifacts import DatasetManifest, digest, read_json, write_json
from pft_core.errors import UserError
from pipelines.config import RunConfig
from pipelines.console import console

JOB_NAME = "job.json"
CONFIG_NAME = "config.yaml"
METRICS_NAME = "metrics.jsonl"
ROOT = Path(__file__).resolve().parents[1]
# Where a run is kept, who watches it and what else is tried do not change what it computes; data sets count by
# content, not by place.
NOT_IN_KEY = {"storage", "tracking", "data", "validation_data", "search"}

# What a path or a disk can refuse; a missing file is not among them, since that may as well be our mistake.
DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.EBUSY, errno.EXDEV,
}  # fmt: skip

Result = dict[str, Any]


def run_job(
    config: RunConfig, run: Callable[[Path, str], Result], *, fresh: bool, kind: str, run_dir: Path | None = None
) -> Result:
    """Call `run(run_dir, key)` unless a finished run with this key is there, whose result is returned again.

    run_dir: `<storage>/<name>-<key[:8]>` unless the caller gives a fixed one. An unfinished run gets the same folder
    again, so that `run` can continue in it; `fresh` removes what is there first. Raises UserError when another
    process writes the folder, or when it holds something that is not this run.
    """
    key = run_key(config, kind=kind)
    run_dir = run_dir or Path(config.storage) / f"{config.name}-{key[:8]}"
    with locked(run_dir):
        if fresh:
            remove_run(run_dir)
        job = _job_in(run_dir, key)
        if job.get("status") == "finished":
            console.print(f"{kind}: {run_dir} is finished already, its result is used again (--fresh starts anew)")
            return dict(job["result"])
        if job:
            console.print(f"{kind}: continuing in {run_dir}")
        return _execute(config, run, run_dir, {"key": key, "kind": kind, "attempt": job.get("attempt", 0) + 1})


def _execute(config: RunConfig, run: Callable[[Path, str], Result], run_dir: Path, job: dict[str, Any]) -> Result:
    run_dir.mkdir(parents=True, exist_ok=True)
    job |= {"status": "running", "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_json(run_dir / JOB_NAME, job)
    (run_dir / CONFIG_NAME).write_text(yaml.safe_dump(config.model_dump(), sort_keys=False), encoding="utf-8")
    begun = time.monotonic()
    try:
        result = run(run_dir, job["key"])
    except Exception as error:
        mistake = unwrap_user_error(error)
        if mistake and job["attempt"] == 1 and not _has_trained(run_dir):
            shutil.rmtree(run_dir)  # nothing was done: a mistake leaves no half-written run behind
        else:
            write_json(run_dir / JOB_NAME, job | {"status": "failed", "error": str(mistake or repr(error))})
        raise
    write_json(run_dir / JOB_NAME, job | {"status": "finished", "seconds": time.monotonic() - begun, "result": result})
    return result


def _has_trained(run_dir: Path) -> bool:
    return any(path.stat().st_size for path in run_dir.rglob(METRICS_NAME))


def _job_in(run_dir: Path, key: str) -> dict[str, Any]:
    """Return the job.json of a run with this key, {} where there is no run yet."""
    if not run_dir.exists() or not any(run_dir.iterdir()):
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
    if any(run_dir.iterdir()) and not (run_dir / JOB_NAME).exists():
        raise UserError(f"{run_dir}: has no {JOB_NAME}, so it is not a run and --fresh does not delete it")
    # Renamed first: cut off half-way, a deletion must not leave a folder that looks like a run.
    doomed = run_dir.with_name(f".{run_dir.name}.{os.getpid()}.deleted")
    run_dir.rename(doomed)
    shutil.rmtree(doomed)


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run against other processes; the lock goes with the process, however it ends. Raises UserError."""
    path = run_dir.with_name(f".{run_dir.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made ({error.strerror}): give a folder that can") from None
    with _lock_file(path, run_dir) as file:
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {os.uname().nodename}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock_file(path: Path, run_dir: Path) -> TextIO:
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            with file:
                raise UserError(
                    f"{run_dir}: another process ({file.read().strip()}) is writing this run: "
                    "wait for it, or stop it and start again to continue its work"
                ) from None
        # Between opening and locking, the holder may have finished and removed the file: then this is nobody's lock.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def run_key(config: RunConfig, *, kind: str) -> str:
    """Return the digest of all that decides a run's result: its kind, config, data and code."""
    data = [DatasetManifest.load(Path(d)).data_digest if d else None for d in (config.data, config.validation_data)]
    return digest([kind, config.model_dump(exclude=NOT_IN_KEY), data, code_digest()])


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Return the digest of the installed code and wording."""
    sha = hashlib.sha256()
    for package, pattern in (("pft_core", "*.py"), ("pft_core", "*.yaml"), ("pipelines", "*.py")):
        for path in sorted((ROOT / package).rglob(pattern)):
            sha.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return sha.hexdigest()[:16]


def commit() -> str | None:
    """The commit that the code stands at, marked where files differ from it; None outside of a repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def ensure_ray(*, num_cpus: int | None = None) -> None:
    """Join the cluster that RAY_ADDRESS names (a submitted job has it), else start Ray on this machine.

    Raises UserError when no cluster answers at RAY_ADDRESS.
    """
    import ray
    import ray.data  # sets its loggers up, which are quietened below

    if ray.is_initialized():
        return
    # Ray's processes inherit PATH: jobs call `python`, and DeepSpeed `ninja`, also where this venv is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns at length where this is not decided
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # its plans and timings are in Ray's own log files
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # says that a local token is used
    if address := os.environ.get("RAY_ADDRESS"):
        join_cluster(address)
        return
    # "local": a bare init would join whatever cluster was last started on this machine.
    # Logical CPUs beyond the cores: Ray Data's tasks starve beside training workers that hold every CPU of a small box.
    cpus = num_cpus or max(6, os.cpu_count() or 1)
    context = ray.init(
        address="local", num_cpus=cpus, include_dashboard=True, log_to_driver=False, logging_level=logging.WARNING
    )
    console.print(f"Ray started: {cpus} logical CPUs, dashboard {context.dashboard_url}")


def join_cluster(address: str) -> None:
    """Connect to a running cluster, with this machine's token where there is one. Raises UserError."""
    import ray
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    refuse_silent_address(address)
    # `ray start` turns token checks on where a token exists; ray.init does the same only without an address.
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"RAY_ADDRESS={address}: cannot join the cluster ({reason}): check the address, and RAY_AUTH_MODE=token "
            "with the cluster's RAY_AUTH_TOKEN where it asks for one"
        ) from None


def refuse_silent_address(address: str) -> None:
    """Try the port first: Ray itself would wait minutes for a cluster that is not there. Raises UserError."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto" and the like: Ray answers at once
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster answers ({error}): start one there, or unset RAY_ADDRESS"
        ) from None


def unwrap_user_error(error: BaseException) -> UserError | None:
    """Find the user's mistake inside what Ray wraps around an exception of a task or worker; None if there is none.

    A full or forbidden disk is a mistake of this kind too, wherever it shows.
    """
    inside = [error]
    for inner in inside:  # grows while it is walked
        inside += [cause for cause in _causes(inner) if all(cause is not known for known in inside)]
    return next((m for find in (_raised, _quoted) for inner in inside if (m := find(inner))), None)


def _causes(error: BaseException) -> list[BaseException]:
    """Exceptions in an exception: Python's own chain, and the causes in Ray's task, worker and controller errors."""
    inner = [error.__cause__, error.__context__, *getattr(error, "worker_failures", {}).values()]
    inner += [getattr(error, name, None) for name in ("cause", "controller_failure")]
    return [e for e in inner if isinstance(e, BaseException)]


def _raised(error: BaseException) -> UserError | None:
    # Ray raises a class made of RayTaskError and the cause's own class: its text is a traceback, the cause's is not.
    if isinstance(error, UserError) and not isinstance(getattr(error, "cause", None), BaseException):
        return error
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        advice = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the path"
        return UserError(f"{error.filename or 'disk'}: {error.strerror}: {advice}, or choose another folder")
    return None


def _quoted(error: BaseException) -> UserError | None:
    # Ray Data and actors that die at birth hand the cause over as the text of its traceback only.
    found = re.search(r"^pft_core\.errors\.UserError: (.+?)(?:\n\n|\Z)", str(error), re.MULTILINE | re.DOTALL)
    if found:
        return UserError(found[1])
    if "No space left on device" in str(error):  # safetensors and torch do not raise an OSError for it
        return UserError("no space left on the disk: make room, or choose another folder")
    return None
