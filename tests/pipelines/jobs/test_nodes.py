"""A cluster of two nodes loses processes and nodes: runs continue, and only the loss of the head ends them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pft_core.files import file_sha256
from tests.builders import record, write_dataset
from tests.two_nodes import Cluster, cluster, until

pytestmark = [pytest.mark.ray, pytest.mark.own_ray, pytest.mark.timeout(1800)]

DRIVER = """
import sys, time, ray
from pipelines.jobs import ensure_ray, nodes, on_this_node
nodes.LOOK_EVERY_S, nodes.HEAD_SILENT_S = 0.2, 2.0
ensure_ray()
while len(ray.nodes()) < 2: time.sleep(0.1)
class NodeProbe:
    def node(self): return ray.get_runtime_context().get_node_id()
own = [ray.remote(num_cpus=0, scheduling_strategy=on_this_node())(NodeProbe).remote() for _ in range(2)]
assert {ray.get(w.node.remote()) for w in own} == {ray.get_runtime_context().get_node_id()}
print("pinned", flush=True)
time.sleep(600)
"""


def test_a_lost_node_is_one_line_and_a_lost_head_one_message_and_exit_2(tmp_path: Path) -> None:
    with cluster() as ray_cluster, (tmp_path / "err").open("w") as err:
        ray_cluster.start_head(num_cpus=0)
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER], env=ray_cluster.env, stdout=subprocess.PIPE, stderr=err
        )
        ray_cluster.join(num_cpus=1)
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"pinned\n"
        ray_cluster.kill("raylet/raylet", node=1)
        until(lambda: "is lost, 1 left" in (tmp_path / "err").read_text(), driver)
        ray_cluster.kill("gcs_server", node=0)
        assert driver.wait(timeout=60) == 2
    said = (tmp_path / "err").read_text().splitlines()
    assert [line for line in said if line.startswith("error: ")] == said[-1:]
    assert "the head of the cluster is gone: start a cluster and run the same command to continue" in said[-1]


def recipe_in(folder: Path, model: Path) -> Path:
    data = write_dataset(folder / "data", [record(n) for n in range(40)])
    train = {"pairs_per_step": 4, "max_steps": 160, "lr": 1e-2, "precision": "fp32", "checkpoint_every": 10}
    recipe = folder / "recipe.yaml"
    lora = {"r": 4, "alpha": 8}
    chosen = {"name": "r", "data": str(data), "model": str(model), "train": train, "lora": lora}
    recipe.write_text(yaml.safe_dump({**chosen, "engine": {"name": "torch"}}))
    return recipe


def start(recipe: Path, storage: Path, env: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipelines.cli", "train", str(recipe), f"storage={storage}"]
    with storage.with_suffix(".err").open("ab") as err:
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=err, text=True)


def finish(process: subprocess.Popen) -> dict:
    stdout, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    return json.loads(stdout)


def has_checkpoints(storage: Path) -> bool:
    return len(list(storage.glob("r-*/checkpoints/checkpoint_*/MANIFEST.json"))) >= 2


def adapter_of(result: dict) -> str:
    return file_sha256(Path(result["adapter"]) / "adapter_model.safetensors")


def lose(ray_cluster: Cluster, name: str, node: int) -> None:
    ray_cluster.kill(name, node=node)
    if name == "raylet/raylet":
        ray_cluster.join(num_cpus=2)  # all work was on that node


@pytest.mark.slow
@pytest.mark.chaos
def test_lost_processes_and_nodes_give_the_same_adapter_and_a_new_cluster_continues(tiny_qwen2, tmp_path) -> None:
    recipe = recipe_in(tmp_path, tiny_qwen2)
    lost = [("ray::Mailbox", 0), ("ray::TrainController", 0), ("ray::RayTrainWorker", 1), ("raylet/raylet", 1)]
    with cluster() as ray_cluster:
        ray_cluster.start_head(num_cpus=0)
        ray_cluster.join(num_cpus=2)
        results = [finish(start(recipe, tmp_path / "whole", ray_cluster.env))]
        for number, (name, node) in enumerate(lost):
            storage = tmp_path / f"lost{number}"
            process = start(recipe, storage, ray_cluster.env)
            until(lambda folder=storage: has_checkpoints(folder), process)
            lose(ray_cluster, name, node)
            results.append(finish(process))
        process = start(recipe, tmp_path / "head", ray_cluster.env)
        until(lambda: has_checkpoints(tmp_path / "head"), process)
        ray_cluster.kill("gcs_server", node=0)
        assert process.wait(timeout=120) == 2
    with cluster() as ray_cluster:
        ray_cluster.start_head(num_cpus=2)
        results.append(finish(start(recipe, tmp_path / "head", ray_cluster.env)))
    assert {adapter_of(result) for result in results} == {adapter_of(results[0])}
    assert results[-1]["resumed_from"] > 0
    for result in results:
        steps = [json.loads(line)["step"] for line in (Path(result["run_dir"]) / "metrics.jsonl").open()]
        assert steps == list(range(1, 161))
