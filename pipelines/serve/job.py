"""`pft serve`: deploy the server, wait until it answers, serve until a signal arrives, then drain."""

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pft_core.errors import UserError
from pipelines.console import console
from pipelines.interruption import on_interruption, stop_ray
from pipelines.jobs import ensure_ray, unwrap_user_error
from pipelines.serve.metrics import refuse_unwritable
from pipelines.serve.serve_config import APPLICATION, IDLE_S, ServeConfig

IMPORT_PATH = "pipelines.serve.deployments:build"
IN_PROXY = "pipelines.serve.http.connections:in_proxy"


def run(config: ServeConfig) -> dict[str, Any]:
    """Serve until SIGINT or SIGTERM, and return url and status. A signal also interrupts a server that is starting.

    Raises UserError if the recipe cannot be served.
    """
    with access_lines(with_port(config)) as config:
        from pipelines.serve.deployments import build

        # `build` reads every policy, so mistakes show before Ray starts.
        return answer(config, build(config.model_dump(exclude_unset=True)))


def answer(config: ServeConfig, application: Any) -> dict[str, Any]:
    """Deploy the application and serve until a signal arrives."""
    from pipelines.serve.engines import engine_name

    start_ray()
    url = url_of(config)
    console.print(f"loading {config.policy} on {engine_name(config)} ...", highlight=False, soft_wrap=True)
    with on_interruption(take_down):
        deploy(config, application)
    with stopping() as stop:
        console.print(
            f"serving {config.name} at {url} (page, /v1, /metrics); Ctrl-C drains and stops",
            highlight=False,
            soft_wrap=True,
        )
        stop.wait()
        console.print("draining")
        drain(config)
        take_down()
    return {"url": url, "status": "stopped"}


@contextlib.contextmanager
def access_lines(config: ServeConfig) -> Iterator[ServeConfig]:
    """Forward the access log from the ingress process to this one's stderr, unless it goes to a file.

    On a cluster it stays in the ingress's stderr, which Ray keeps, because the ingress may run on another node.
    """
    if os.environ.get("RAY_ADDRESS"):
        yield config
    elif config.access_log is not None:
        refuse_unwritable(Path(config.access_log))
        yield config
    else:
        with tempfile.TemporaryDirectory(prefix="pft-serve-") as folder:
            pipe = Path(folder) / "access.jsonl"
            os.mkfifo(pipe, 0o600)
            with _forward_lines(pipe):
                yield config.model_copy(update={"access_log": str(pipe)})


@contextlib.contextmanager
def _forward_lines(pipe: Path) -> Iterator[None]:
    """Copy lines from a pipe to stderr; an empty line ends the copying."""
    # Opened for reading and writing, so that the pipe has no end before its first writer or when a replica is replaced.
    with open(os.open(pipe, os.O_RDWR), encoding="utf-8") as lines:
        thread = threading.Thread(
            target=lambda: [print(line, end="", file=sys.stderr, flush=True) for line in iter(lines.readline, "\n")],
            name="access-log",
            daemon=True,
        )
        thread.start()
        try:
            yield
        finally:
            pipe.write_text("\n")
            thread.join()


def start_ray() -> None:
    """Join the cluster or start Ray, with a dashboard that samples the processes less often.

    Each sample delays all of them: on two busy cores it doubled the 99th-percentile latency of the 429s (from 40 to
    80 ms, measured).
    """
    os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", IN_PROXY)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ensure_ray(dashboard=True)


def deploy(config: ServeConfig, application: Any) -> None:
    """Start the proxy and the application, or update the running one. Raises UserError if it does not start."""
    from ray import serve

    serve.start(http_options=http_options(config), proxy_location="HeadOnly")
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        user_error = unwrap_user_error(error) or _replica_error()
        if user_error is None:
            raise
        raise user_error from None


def http_options(config: ServeConfig) -> dict[str, Any]:
    """Return the HTTP options of Serve's proxy."""
    return {"host": config.host, "port": config.port, "keep_alive_timeout_s": IDLE_S}


def _replica_error() -> UserError | None:
    """Return the UserError in Serve's messages about replicas that did not start, or None."""
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    messages = [d.message for d in application.deployments.values()] if application else []
    return next((found for text in messages if (found := unwrap_user_error(RuntimeError(text)))), None)


def drain(config: ServeConfig) -> None:
    """Reject new requests, and wait until the accepted ones are answered, at most `drain_s` seconds."""
    from ray import serve

    with contextlib.suppress(TimeoutError):
        serve.get_app_handle(APPLICATION).drain.remote().result(timeout_s=config.scaling.drain_s + 5)


def take_down() -> str:
    """Stop our own Ray with all processes in it, or take the application off the cluster.

    Our own Ray stops all at once, because a proxy without its application would answer 404. Returns "": there is
    nothing more to report about a server that is interrupted before it answers.
    """
    if os.environ.get("RAY_ADDRESS"):
        shut_down()
    return stop_ray()


def shut_down() -> None:
    """Remove the application and Serve from a cluster that keeps running."""
    from ray import serve

    serve.delete(APPLICATION)
    serve.shutdown()


def url_of(config: ServeConfig) -> str:
    return f"http://[{config.host}]:{config.port}" if ":" in config.host else f"http://{config.host}:{config.port}"


def with_port(config: ServeConfig) -> ServeConfig:
    """Return the config with a free port in place of 0. Raises UserError if the port is taken."""
    with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise UserError(
                f"{url_of(config)}: cannot be bound ({error.strerror}): choose another host or port=0"
            ) from None
        return config.model_copy(update={"port": probe.getsockname()[1]})


@contextlib.contextmanager
def stopping() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve_yaml(config: ServeConfig) -> dict[str, Any]:
    """Return the config for `serve deploy` or a RayService."""
    return {
        "proxy_location": "EveryNode",
        "http_options": http_options(config),
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": config.model_dump(exclude_defaults=True),
            }
        ],
    }
