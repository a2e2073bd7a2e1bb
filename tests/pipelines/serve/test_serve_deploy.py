"""Tests of `pft show serve` and `serve deploy` on a separately started Ray cluster, as operators use them."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import yaml

from tests.serving import serve_config, wait_until_ready, write_policy

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[str]:
    """The URL of a cluster's dashboard, to which `serve deploy` sends the application."""
    port, agent = free_port(), free_port()
    ports = ["--port=0", f"--dashboard-port={port}", f"--dashboard-agent-listen-port={agent}"]
    # Not Ray's default folder: an ended cluster leaves its address there, which makes others wait for it. The path is
    # short, because sockets are created in it.
    own = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    with (tmp_path / "ray.log").open("w") as log:
        command = [str(BIN / "ray"), "start", "--head", "--num-cpus=4", "--block", f"--temp-dir={own}", *ports]
        cluster = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=tmp_path)
        try:
            wait_for_dashboard(f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}"
        finally:
            cluster.send_signal(signal.SIGTERM)
            cluster.wait(60)
            shutil.rmtree(own, ignore_errors=True)


def wait_for_dashboard(url: str) -> None:
    """Wait for any response: without the cluster's token, which `serve deploy` knows, it is 401."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(url)
            return
        time.sleep(0.2)
    raise TimeoutError(url)


def test_the_config_from_show_serve_can_be_deployed_and_answers(
    dashboard: str, tiny_qwen2: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    write_policy(folder / "policy", tiny_qwen2, seed=0)
    config: dict[str, Any] = serve_config(Path("policy"), Path("cache"), port=free_port()).model_dump(
        exclude_defaults=True
    )
    recipe = config | {"policy": "policy", "store": {"cache": "cache"}}  # relative, as a user writes them
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    shown = run("pft", "show", "serve", "recipe.yaml", folder=folder)
    (tmp_path / "serve.yaml").write_text(shown)
    run("serve", "deploy", "serve.yaml", "--address", dashboard, folder=tmp_path)
    url = f"http://127.0.0.1:{config['port']}"
    wait_until_ready(url)
    body = {"scenario": "The plan", "options": ["go", "stay"], "preference": "Bold"}
    choice = httpx.post(f"{url}/v1/choose", json=body, timeout=60).json()
    assert sum(option["probability"] for option in choice["options"]) == pytest.approx(1)
    assert choice["model"].startswith("policy@")


def run(command: str, *arguments: str, folder: Path) -> str:
    env = os.environ | {"RAY_AUTH_MODE": "token"}  # makes `serve` send the token that the cluster requires
    done = subprocess.run(
        [str(BIN / command), *arguments], cwd=folder, capture_output=True, text=True, timeout=120, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
