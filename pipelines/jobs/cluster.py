"""Ray, joined or started."""

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
from pipelines.jobs.ray_messages import tell_briefly

ADDRESS = re.compile(r"(ray://)?(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]+):(?P<port>\d{1,5})")
LAST_PORT = 65535
LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
SESSION_BYTES = 64 << 20  # logs, ports, sockets
LONGEST_SOCKET = 107  # bytes of a Unix socket's path, on Linux


def ensure_ray(*, num_cpus: int | None = None, dashboard: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS names (a submitted job has it), else start Ray on this machine.

    dashboard: whether a Ray that is started has one: it takes seconds of every core, and Ray Tune cleans up by it.
    Raises UserError when no cluster answers at RAY_ADDRESS.
    """
    import ray
    import ray.data  # sets its loggers up, which are quietened below

    if ray.is_initialized():
        return
    refuse_unusable_environment()
    # Ray's processes inherit PATH: jobs call `python`, and DeepSpeed `ninja`, also where this venv is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns at length where this is not decided
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # its plans and timings are in Ray's own log files
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # says that a local token is used
    if address := os.environ.get("RAY_ADDRESS"):
        join_cluster(address)
    else:
        # Logical CPUs beyond the cores: Ray Data's tasks starve beside training workers that hold all of a small box.
        start_ray(num_cpus or max(6, os.cpu_count() or 1), dashboard=dashboard)
    tell_briefly()
    keep_catching()  # Ray ends a driver at SIGTERM, its workers left to die by a C++ stack


def start_ray(num_cpus: int, *, dashboard: bool) -> None:
    """Start Ray on this machine, for it alone."""
    import ray
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon a run is seen to have ended
    with on_loopback(), quiet_core():
        own_token()
        context = ray.init(
            address="local",  # a bare init would join whatever cluster was last started on this machine
            num_cpus=num_cpus,
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    console.print(f"Ray started: {num_cpus} logical CPUs" + f", dashboard {context.dashboard_url}" * dashboard)
    # Ray Train and Ray Data wait for it when they come to it; started now, it is there.
    get_or_create_autoscaling_coordinator()


@contextmanager
def quiet_core() -> Iterator[None]:
    """Keep the C++ core of this process off the terminal; what Ray starts beside it writes its logs as ever.

    At every pool of Ray Data it warns in red of arguments in the object store, which the driver holds anyway.
    """
    from ray._private import worker

    connect = worker.connect

    def connect_quietly(*args: Any, **kwargs: Any) -> Any:
        with set_in_environment(LOG_LEVEL, "fatal"), without_stderr():  # read once, as the core starts, and said
            return connect(*args, **kwargs)

    if LOG_LEVEL not in os.environ:  # else somebody looks for something
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
    """Drop what is written to stderr, also past Python."""
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
    """Start Ray as on a laptop: GCS, raylet, agents, their metrics and every worker listen on this machine alone.

    Ray has no option for it: of an address that is given as loopback it takes the machine's own instead.
    """
    from ray._private import ray_constants

    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def own_token() -> None:
    """Let the token of Ray be read by its owner alone: Ray writes it as the umask says, and who reads it is let in."""
    from ray._private.authentication import authentication_token_setup as setup

    before = os.umask(0o077)
    try:
        if setup.enable_token_auth_by_default():
            setup.ensure_token_if_auth_enabled(create_token_if_missing=True)
    finally:
        os.umask(before)
    close_token()


def close_token() -> None:
    """Take the token's file from all but its owner, where it is there and ours."""
    from ray._private.authentication.authentication_token_setup import _get_default_token_path

    file = _get_default_token_path()
    with suppress(OSError):
        file.chmod(file.stat().st_mode & 0o700)


def has_started_ray() -> bool:
    """Whether this process has started the Ray that it uses: that one ends with it, and nobody else is on it."""
    from ray._private import worker

    return worker._global_node is not None and worker._global_node.is_head()


def join_cluster(address: str) -> None:
    """Connect to a running cluster, with this machine's token where there is one. Raises UserError."""
    import ray
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    # `ray start` turns token checks on where a token exists; ray.init does the same only without an address.
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    close_token()
    try:
        with quiet_core():
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"RAY_ADDRESS={address}: cannot join the cluster ({reason}): check the address, and RAY_AUTH_MODE=token "
            "with the cluster's RAY_AUTH_TOKEN where it asks for one"
        ) from None
    watch_nodes(address)


def refuse_unusable_environment() -> None:
    """Say, without importing Ray, that it could not be joined or started here. Raises UserError."""
    if address := os.environ.get("RAY_ADDRESS"):
        refuse_silent_address(address)
    else:
        refuse_long_sockets()
        refuse_full_session()


def refuse_silent_address(address: str) -> None:
    """Try the port first: Ray itself would wait minutes for a cluster that is not there. Raises UserError."""
    if address in ("auto", "local"):
        return  # Ray answers at once
    if (place := ADDRESS.fullmatch(address)) is None or int(place["port"]) > LAST_PORT:
        raise UserError(
            f"RAY_ADDRESS={address}: is no address of a Ray cluster: give HOST:PORT, ray://HOST:PORT or auto, or unset "
            "RAY_ADDRESS to start Ray on this machine"
        )
    try:
        socket.create_connection((place["host"].strip("[]"), int(place["port"])), timeout=10).close()
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster answers ({error}): start one there, or unset RAY_ADDRESS"
        ) from None


def refuse_full_session() -> None:
    """Raise UserError where the disk that Ray's session lies on is full: what it starts would be waited for in vain."""
    variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = Path(os.environ.get(variable) or "/tmp")  # `tempfile` passes over a folder that is full, Ray does not
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    if (free := shutil.disk_usage(folder).free) < SESSION_BYTES:
        raise UserError(
            f"{folder}: {free >> 20} MB are free, and Ray, whose session lies there, needs {SESSION_BYTES >> 20}: make "
            f"room, or set {variable} to another folder"
        )


def refuse_long_sockets() -> None:
    """Raise UserError where the temporary folder's path leaves no room for the sockets that Ray makes there."""
    variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = os.environ.get(variable, "")
    session = f"/ray/session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    if (room := LONGEST_SOCKET - len(session)) < (length := len(os.fsencode(folder))):
        raise UserError(
            f"{variable}={folder}: has {length} characters, and Ray, whose sockets lie there, takes at most {room}: "
            "set RAY_TMPDIR to a shorter folder, such as /tmp"
        )
