"""A submitted run outlives its cluster: it is evaluated without it, and goes on or is used again on another."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.two_nodes import answers, cluster, until

pytestmark = [pytest.mark.slow, pytest.mark.own_ray, pytest.mark.timeout(1800)]

TRAIN = ["train", "quickstart", "train.max_steps=8", "train.checkpoint_every=4"]


def pft(*words: str, env: dict[str, str] | None = None, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli", *words]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=900, check=False)


def submitted(storage: Path) -> dict:
    """Submit the training to a cluster of its own, which ends with it; return the training's result."""
    with cluster(dashboard=True) as ray_cluster:
        ray_cluster.start_head(num_cpus=4)
        env = {name: value for name, value in ray_cluster.env.items() if name != "RAY_ADDRESS"}
        address = f"http://127.0.0.1:{ray_cluster.dashboard_port}"
        until(lambda: answers(ray_cluster.dashboard_port), ray_cluster.nodes[0])
        done = pft("submit", "--address", address, "--", *TRAIN, f"storage={storage}", env=env, cwd=storage.parent)
    assert done.returncode == 0, done.stderr
    result: dict = json.loads(done.stdout)["result"]
    return result


def test_a_submitted_run_is_evaluated_and_found_again_after_its_cluster_has_ended(tmp_path: Path) -> None:
    first = submitted(tmp_path / "runs")
    data = tmp_path / "test"
    rows = ["--source", "toyworld", "--split", "test", "--output", str(data)]
    assert pft("prepare", *rows, cwd=tmp_path).returncode == 0
    asked = ["--data", str(data), "--model", first["model_ref"], "--output", str(tmp_path / "report")]
    evaluated = pft("evaluate", *asked, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    job = Path(first["run_dir"]) / "job.json"
    job.write_text(json.dumps(json.loads(job.read_text()) | {"status": "running"}))  # as one that was cut off
    again = submitted(tmp_path / "runs")
    assert again == first | {"resumed_from": 8}
    for name in ("model_ref.json", "config.yaml", "job.json"):
        assert "_ray_pkg_" not in (Path(first["run_dir"]) / name).read_text()
