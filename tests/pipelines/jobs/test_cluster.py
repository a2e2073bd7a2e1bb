"""The Ray started by a verb: who can reach it, and who can read its token."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pft_core.errors import UserError
from pipelines.jobs import refuse_unusable_environment
from pipelines.jobs.cluster import slow_start_explained

SCRIPT = """
import json, os, time
from pathlib import Path
os.umask(0o022)
from pipelines.jobs import ensure_ray
ensure_ray(num_cpus=1, dashboard=True)
import psutil, ray
ray.get(ray.remote(lambda: 1).remote())
time.sleep(3)  # agents and the autoscaler open their ports later
me = psutil.Process()
found = [c.laddr.ip for p in [me, *me.children(recursive=True)] for c in p.net_connections("tcp")
         if c.status == "LISTEN"]
mode = (Path.home() / ".ray" / "auth_token").stat().st_mode & 0o777
print(json.dumps({"listeners": found, "mode": mode}))
ray.shutdown()
"""


@pytest.mark.ray
@pytest.mark.own_ray
@pytest.mark.parametrize("left", [None, 0o644], ids=["no token yet", "a token that all can read"])
def test_a_started_ray_listens_on_loopback_and_only_its_owner_reads_the_token(tmp_path: Path, left: int | None) -> None:
    if left is not None:
        token = tmp_path / ".ray" / "auth_token"
        token.parent.mkdir()
        token.write_text("0" * 64)
        token.chmod(left)
    given = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=given | {"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["mode"] == 0o600
    assert len(found["listeners"]) > 8
    assert {ip.removeprefix("::ffff:") for ip in found["listeners"]} == {"127.0.0.1"}


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_full_disk_for_ray_s_session_is_reported_before_ray_starts(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setenv(variable, "/tmp/not-made-yet")
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=5 << 20))
    with pytest.raises(UserError, match=f"5 MB are free, but Ray needs .* or set {variable} to another"):
        refuse_unusable_environment()
    assert asked == [Path("/tmp")]


POOL = """
import os
from pipelines.jobs import ensure_ray
ensure_ray(num_cpus=1)
import ray

class Worker:
    def __init__(self, held):
        self.level = os.environ.get("RAY_BACKEND_LOG_LEVEL", "as ever")

    def said(self):
        return self.level

held = ray.put(1)
worker = ray.remote(num_cpus=0, max_restarts=1)(Worker).remote(held)
print(ray.get(worker.said.remote()), os.environ.get("RAY_BACKEND_LOG_LEVEL", "as ever"))
ray.shutdown()
"""


@pytest.mark.ray
@pytest.mark.own_ray
def test_logs_of_ray_s_core_stay_off_the_terminal_and_workers_still_log(tmp_path: Path) -> None:
    given = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", POOL], env=given, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "as ever as ever"
    assert [line for line in done.stderr.splitlines() if line.strip()] == ["Ray started: 1 logical CPUs"]


def test_a_ray_that_gives_up_its_start_is_one_message_and_other_failures_stay_as_they_are() -> None:
    with (
        pytest.raises(UserError, match=r"Ray did not start within its 30 s: .* run the same command again"),
        slow_start_explained(),
    ):
        raise RuntimeError("The current node timed out during startup. This could happen because ...")
    with pytest.raises(ValueError, match="another"), slow_start_explained():
        raise ValueError("another")
