"""Join a Ray cluster, or start Ray on this machine."""

import logging
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pft_core.errors import UserError
from pipelines.console import console
from pipelines.interruption import keep_catching
from pipelines.jobs.nodes import watch_nodes
from pipelines.jobs.ray_messages import shorten_messages

ADDRESS = re.compile(r"(ray://)?(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]+):(?P<port>\d{1,5})")
LAST_PORT = 65535
LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
SESSION_BYTES = 64 << 20  # for logs, port files and sockets
LONGEST_SOCKET = 107  # bytes in the path of a Unix socket on Linux


def ensure_ray(*, num_cpus: int | None = None, dashboard: bool = False) -> None:
    """Join the cluster at RAY_ADDRESS, which is set in a submitted job; without it, start Ray on this machine.

    dashboard: whether a started Ray gets a dashboard, which costs seconds of CPU time; Ray Tune needs it to clean up.
    Raises UserError if no cluster answers at RAY_ADDRESS.
    """
    import ray
    import ray.data  # sets up its loggers, whose levels are raised below

    if ray.is_initialized():
        return
    refuse_unusable_environment()
    # Ray's processes inherit PATH: jobs call `python` and DeepSpeed calls `ninja`, even if this venv is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without it, Ray prints a long warning
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # its plans and timings are in Ray's log files
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it reports each use of a local token
    if address := os.environ.get("RAY_ADDRESS"):
        join_cluster(address)
    else:
        # More logical CPUs than cores: on a small machine, training workers would leave none for Ray Data's tasks.
        start_ray(num_cpus or max(6, os.cpu_count() or 1), dashboard=dashboard)
    shorten_messages()
    keep_catching()  # Ray's own SIGTERM handler ends the driver, and the workers crash with C++ stack traces


def start_ray(num_cpus: int, *, dashboard: bool) -> None:
    """Start Ray on this machine, reachable from this machine only."""
    import ray
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # this machine is not preemptible
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon the end of a run is noticed
    with on_loopback(), quiet_core(), slow_start_explained():
        own_token()
        context = ray.init(
            address="local",  # a plain init would join the last cluster started on this machine
            num_cpus=num_cpus,
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    console.print(f"Ray started: {num_cpus} logical CPUs" + f", dashboard {context.dashboard_url}" * dashboard)
    # Started early, since Ray Train and Ray Data would wait for it later.
    get_or_create_autoscaling_coordinator()


@contextmanager
def slow_start_explained() -> Iterator[None]:
    """Raise UserError if Ray gives up its own start, after a fixed 30 s in `ray._private.node`."""
    try:
        yield
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            "Ray did not start within its 30 s: the machine is overloaded or out of memory: run the same command again "
            "when less is running, or set RAY_ADDRESS to a cluster"
        ) from None


@contextmanager
def quiet_core() -> Iterator[None]:
    """Keep messages of this process's C++ core off the terminal; Ray's other processes still write their logs.

    For every actor pool of Ray Data, the core prints a red warning about arguments in the object store.
    """
    from ray._private import worker

    connect = worker.connect

    def connect_quietly(*args: Any, **kwargs: Any) -> Any:
        with set_in_environment(LOG_LEVEL, "fatal"), without_stderr():  # read and printed once, when the core starts
            return connect(*args, **kwargs)

    if LOG_LEVEL not in os.environ:  # if it is set, somebody is debugging
        worker.connect = connect_quietly
    try:
        yield
    finally:
        worker.connect = connect


@contextmanager
def set_in_environment(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


@contextmanager
def without_stderr() -> Iterator[None]:
    """Discard all output to stderr, also from C++ code."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def on_loopback() -> Iterator[None]:
    """Make GCS, raylet, agents, metrics and workers of a started Ray listen on the loopback interface only.

    Ray has no option for this: it replaces a loopback address by the machine's own.
    """
    from ray._private import ray_constants

    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def own_token() -> None:
    """Create Ray's token file readable by its owner only: whoever can read the token can use the cluster."""
    from ray._private.authentication import authentication_token_setup as setup

    before = os.umask(0o077)
    try:
        if setup.enable_token_auth_by_default():
            setup.ensure_token_if_auth_enabled(create_token_if_missing=True)
    finally:
        os.umask(before)
    close_token()


def close_token() -> None:
    """Remove the permissions of group and others from the token file, if it exists and is ours."""
    from ray._private.authentication.authentication_token_setup import _get_default_token_path

    file = _get_default_token_path()
    with suppress(OSError):
        file.chmod(file.stat().st_mode & 0o700)


def has_started_ray() -> bool:
    """Return whether this process started its Ray, which then ends with it and serves nobody else."""
    from ray._private import worker

    return worker._global_node is not None and worker._global_node.is_head()


def join_cluster(address: str) -> None:
    """Connect to a running cluster, with the token of this machine if it has one. Raises UserError."""
    import ray
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    # `ray start` enables token checks if a token exists; ray.init does so only without an address.
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    close_token()
    try:
        with quiet_core():
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"RAY_ADDRESS={address}: cannot join the cluster ({reason}): check the address, and set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN if the cluster requires a token"
        ) from None
    watch_nodes(address)


def refuse_unusable_environment() -> None:
    """Raise UserError, without importing Ray, if it could not be joined or started here."""
    if address := os.environ.get("RAY_ADDRESS"):
        refuse_silent_address(address)
    else:
        refuse_long_sockets()
        refuse_full_session()


def refuse_silent_address(address: str) -> None:
    """Raise UserError if nothing listens at the address: Ray itself would wait for minutes."""
    if address in ("auto", "local"):
        return  # Ray decides these immediately
    if (place := ADDRESS.fullmatch(address)) is None or int(place["port"]) > LAST_PORT:
        raise UserError(
            f"RAY_ADDRESS={address}: not the address of a Ray cluster: give HOST:PORT, ray://HOST:PORT or auto, or "
            "unset RAY_ADDRESS to start Ray on this machine"
        )
    try:
        socket.create_connection((place["host"].strip("[]"), int(place["port"])), timeout=10).close()
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster answers ({error}): start one there, or unset RAY_ADDRESS"
        ) from None


def refuse_full_session() -> None:
    """Raise UserError if the disk of Ray's session folder is full: its processes would never come up."""
    variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = Path(os.environ.get(variable) or "/tmp")  # `tempfile` skips a full folder, Ray does not
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    if (free := shutil.disk_usage(folder).free) < SESSION_BYTES:
        raise UserError(
            f"{folder}: {free >> 20} MB are free, but Ray needs {SESSION_BYTES >> 20} for its session there: free some "
            f"space, or set {variable} to another folder"
        )


def refuse_long_sockets() -> None:
    """Raise UserError if the path of the temporary folder is too long for the sockets that Ray creates there."""
    variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = os.environ.get(variable, "")
    session = f"/ray/session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    if (room := LONGEST_SOCKET - len(session)) < (length := len(os.fsencode(folder))):
        raise UserError(
            f"{variable}={folder}: the path has {length} bytes, but Ray's sockets allow at most {room}: set "
            "RAY_TMPDIR to a shorter folder, such as /tmp"
        )
