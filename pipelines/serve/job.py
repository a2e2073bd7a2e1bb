"""`pft serve`: deploy, wait until it answers, serve until told to stop, drain."""

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
    """Serve until SIGINT or SIGTERM, which interrupt a server that does not answer yet. Result: url, status.

    Raises UserError for what cannot be served.
    """
    with access_lines(with_port(config)) as config:
        from pipelines.serve.deployments import build

        # Reads every policy: mistakes show before Ray starts.
        return answer(config, build(config.model_dump(exclude_unset=True)))


def answer(config: ServeConfig, application: Any) -> dict[str, Any]:
    """Deploy, and serve until told to stop."""
    start_ray()
    url = url_of(config)
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
    """Bring the access log from the process that answers to this one's stderr, unless it goes to a file.

    On a cluster it stays in the stderr of the ingress, which Ray keeps: that process may run elsewhere.
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
            with _passed_on(pipe):
                yield config.model_copy(update={"access_log": str(pipe)})


@contextlib.contextmanager
def _passed_on(pipe: Path) -> Iterator[None]:
    """Write the lines of a pipe to stderr; an empty one is the last."""
    # Opened for both: it ends neither before the first writer comes, nor when a replica is replaced.
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
    """Join the cluster or start Ray, whose dashboard then looks at the processes less often.

    Each look holds them all up; on two busy cores it doubled the slowest hundredth of the 429s (40 to 80 ms, measured).
    """
    os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", IN_PROXY)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ensure_ray(dashboard=True)


def deploy(config: ServeConfig, application: Any) -> None:
    """Start the proxy and the application, or update the one that runs. Raises UserError where it does not start."""
    from ray import serve

    serve.start(http_options=http_options(config), proxy_location="HeadOnly")
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        mistake = unwrap_user_error(error) or _fault()
        if mistake is None:
            raise
        raise mistake from None


def http_options(config: ServeConfig) -> dict[str, Any]:
    """Return what Serve's proxy is told."""
    return {"host": config.host, "port": config.port, "keep_alive_timeout_s": IDLE_S}


def _fault() -> UserError | None:
    """Find a user's mistake in what Serve noted about the replicas that did not start."""
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    messages = [d.message for d in application.deployments.values()] if application else []
    return next((found for text in messages if (found := unwrap_user_error(RuntimeError(text)))), None)


def drain(config: ServeConfig) -> None:
    """Have new requests sent away, and wait until those that were taken on are answered, at most `drain_s`."""
    from ray import serve

    with contextlib.suppress(TimeoutError):
        serve.get_app_handle(APPLICATION).drain.remote().result(timeout_s=config.scaling.drain_s + 5)


def take_down() -> str:
    """End what was started: our own Ray with all in it, at once, as a proxy without its application answers 404.

    Of a server that is interrupted before it answers, there is nothing more to say: "".
    """
    if os.environ.get("RAY_ADDRESS"):
        shut_down()
    return stop_ray()


def shut_down() -> None:
    """Take the application and Serve off a cluster that goes on."""
    from ray import serve

    serve.delete(APPLICATION)
    serve.shutdown()


def url_of(config: ServeConfig) -> str:
    return f"http://[{config.host}]:{config.port}" if ":" in config.host else f"http://{config.host}:{config.port}"


def with_port(config: ServeConfig) -> ServeConfig:
    """Return the config with a free port in place of 0. Raises UserError where the port is taken."""
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
    """Give an event that SIGINT and SIGTERM set."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve_yaml(config: ServeConfig) -> dict[str, Any]:
    """Return the config file that `serve deploy` and a RayService take."""
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
