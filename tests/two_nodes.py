"""A Ray cluster of two nodes on this machine: two `ray start` processes that can be killed separately."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
RAY = Path(sys.executable).with_name("ray")
SECONDS = 120.0
SMALL = ("--disable-usage-stats", "--include-log-monitor=false", "--object-store-memory=200000000")
STARTED = b"Ray runtime started."  # printed by `ray start` when the head has registered the node
# How soon a head declares a silent node dead; with Ray's defaults, after a quarter of a minute.
HEALTH_CHECKS = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}


class Cluster:
    """nodes: the `ray start` processes, head first. env: environment of a process that joins with the token."""

    def __init__(self, folder: Path, *, dashboard: bool) -> None:
        self.port, self.dashboard_port, client_port = free_ports(3)
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        code = os.pathsep.join([str(ROOT), own.get("PYTHONPATH", "")])
        self._env = {**own, **token, **HEALTH_CHECKS, "OMP_NUM_THREADS": "1", "PYTHONPATH": code}
        self.env = {**self._env, "RAY_ADDRESS": f"127.0.0.1:{self.port}"}
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._folder = folder
        self._head = [
            "--head", f"--port={self.port}", f"--ray-client-server-port={client_port}", f"--temp-dir={folder}",
            f"--include-dashboard={str(dashboard).lower()}", f"--dashboard-port={self.dashboard_port}", "--no-monitor",
        ]  # fmt: skip

    def start_head(self, *, num_cpus: int) -> None:
        self._start(*self._head, num_cpus=num_cpus)

    def join(self, *, num_cpus: int) -> None:
        self._start(f"--address=127.0.0.1:{self.port}", num_cpus=num_cpus)

    def _start(self, *arguments: str, num_cpus: int) -> None:
        """Start a node, and wait until the head has registered it."""
        (agent_port,) = free_ports(1)  # Ray's default is one port per machine, and no job starts without an agent
        arguments = (*arguments, f"--num-cpus={num_cpus}", f"--dashboard-agent-listen-port={agent_port}")
        command = [str(RAY), "start", "--block", *SMALL, *arguments]
        path = self._folder.with_name(f"{self._folder.name}.{len(self.nodes)}.log")
        with path.open("ab") as log:
            self.nodes.append(subprocess.Popen(command, env=self._env, stdout=log, stderr=log, start_new_session=True))
        until(lambda: STARTED in path.read_bytes(), self.nodes[-1])

    def process(self, name: str, *, node: int) -> psutil.Process | None:
        """Return a process of a node whose title or program contains this name; None if there is none."""
        for process in psutil.Process(self.nodes[node].pid).children(recursive=True):
            with suppress(psutil.Error):
                if name in process.cmdline()[0]:
                    return process
        return None

    def kill(self, name: str, *, node: int) -> None:
        """Wait for such a process, and kill it; a raylet takes its workers with it."""
        until(lambda: self.process(name, node=node) is not None, self.nodes[node])
        process = self.process(name, node=node)
        assert process is not None
        process.send_signal(signal.SIGKILL)

    def end(self) -> None:
        for node in self.nodes:
            with suppress(psutil.NoSuchProcess):
                for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)  # started in its own session: kill the rest of it
            node.wait()


@contextmanager
def cluster(*, dashboard: bool = False) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="pft-", dir="/tmp"))  # holds sockets, whose paths must be short
    started = Cluster(folder, dashboard=dashboard)
    try:
        yield started
    finally:
        started.end()
        shutil.rmtree(folder, ignore_errors=True)
        for log in folder.parent.glob(f"{folder.name}.*.log"):
            log.unlink()


def until(is_so: Callable[[], bool], process: subprocess.Popen, *, seconds: float = SECONDS) -> None:
    """Wait until a condition holds while a process runs."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert process.poll() is None, "the process has ended too early"
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.1)


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
