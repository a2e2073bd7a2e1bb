"""A submitted run outlives its cluster: it is evaluated and served without it, and continued or reused on another."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from pft_core.evaluation.outcome_files import OUTCOMES_NAME, read_outcomes
from pipelines.prepare import job as prepare
from pipelines.prepare.prepare_config import PrepareConfig
from tests.serving import assert_same_outcomes
from tests.two_nodes import answers, cluster, until

pytestmark = [pytest.mark.slow, pytest.mark.own_ray, pytest.mark.timeout(1800)]

TRAIN = ["train", "quickstart", "train.max_steps=8", "train.checkpoint_every=4"]


def pft(*words: str, env: dict[str, str] | None = None, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli", *words]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=900, check=False)


def submitted(storage: Path) -> dict:
    """Submit the training to a new cluster that ends with it; return the result of the training.

    The driver is on the head, all work is on a second node of this machine, which unpacks the upload again.
    """
    with cluster(dashboard=True) as ray_cluster:
        ray_cluster.start_head(num_cpus=0)
        ray_cluster.join(num_cpus=4)
        env = {name: value for name, value in ray_cluster.env.items() if name != "RAY_ADDRESS"}
        address = f"http://127.0.0.1:{ray_cluster.dashboard_port}"
        until(lambda: answers(ray_cluster.dashboard_port), ray_cluster.nodes[0])
        done = pft("submit", "--address", address, "--", *TRAIN, f"storage={storage}", env=env, cwd=storage.parent)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    result: dict = json.loads(done.stdout)["result"]
    return result


@contextmanager
def served(policy: str, folder: Path) -> Iterator[str]:
    """Serve a policy with its own Ray; yield the URL."""
    recipe, log = folder / "serve.yaml", folder / "serve.log"
    engine = {"name": "transformers"}  # vLLM does not support heads as small as the shipped base's
    recipe.write_text(yaml.safe_dump({"policy": policy, "engine": engine, "store": {"cache": str(folder / "cache")}}))
    with log.open("w") as err:
        command = [sys.executable, "-m", "pipelines.cli", "serve", str(recipe), "port=0"]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=err)
    try:
        until(lambda: "serving policy at http://" in log.read_text(), process, seconds=300)
        found = re.search(r"serving policy at (http://\S+)", log.read_text())
        assert found is not None
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def test_a_submitted_run_is_evaluated_served_and_reused_after_its_cluster_has_ended(tmp_path: Path) -> None:
    first = submitted(tmp_path / "runs")
    data, offline, online = (tmp_path / name for name in ("test", "offline", "online"))
    prepare.run(PrepareConfig(source="toyworld", split="test", num_per_axis=6, output=str(data)))
    asked = ["evaluate", "--data", str(data), "--output"]
    evaluated = pft(*asked, str(offline), "--model", first["model_ref"], cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    with served(first["run_dir"], tmp_path) as url:
        evaluated = pft(*asked, str(online), "--endpoint", url, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    lines = (online / OUTCOMES_NAME).read_text().splitlines()
    assert_same_outcomes(lines, read_outcomes(offline / OUTCOMES_NAME))
    job = Path(first["run_dir"]) / "job.json"
    job.write_text(json.dumps(json.loads(job.read_text()) | {"status": "running"}))  # as if it had been killed
    again = submitted(tmp_path / "runs")
    assert again == first | {"resumed_from": 8}
    for name in ("model_ref.json", "config.yaml", "job.json"):
        assert "_ray_pkg_" not in (Path(first["run_dir"]) / name).read_text()
