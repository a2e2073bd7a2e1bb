"""Searches end to end: tiny, with real Ray Tune, Ray Train and MLflow."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import ray
from mlflow import MlflowClient
from ray.util.state import list_actors

from pft_core.artifacts import ModelRef
from pipelines.config import load_config
from pipelines.tune import job

SMALL = (
    "train.max_steps=8",
    "train.pairs_per_step=4",
    "train.warmup_steps=0",
    "train.checkpoint_every=0",
    "search.limit_per_axis=4",
)
RATIOS = ("search.alphas=[0,1]", "search.betas=[0,1]")


def config(storage: Path, *overrides: str):
    return load_config("quickstart", [f"storage={storage}", *SMALL, *overrides])


def report(result) -> dict:
    return json.loads(Path(result["report_json"]).read_text())


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tune")


@pytest.fixture(scope="module")
def grid(ray_cluster, storage) -> dict:
    return job.run(config(storage, *RATIOS))


def numbers(found: dict, source: str) -> list[dict]:
    return [cell for cell in found["cells"] if cell["source"] == source]


@pytest.mark.ray
def test_a_grid_answers_every_cell_and_shows_the_base_where_both_weights_are_zero(grid) -> None:
    found = report(grid)
    assert [(c["alpha"], c["beta"], c["t"]) for c in found["cells"]] == [
        (0, 0, None), (0, 1, "-inf"), (1, 0, "inf"), (1, 1, 0.0),
    ]  # fmt: skip
    assert [c["source"] for c in found["cells"]] == ["base", "trained", "trained", "trained"]
    for cell in found["cells"]:
        assert cell["low"] <= cell["both_right"] <= cell["high"]
        assert cell["worse_pole"] == min(cell["pole_first"], cell["pole_second"])
    assert {trial["steps"] for trial in found["trials"] if trial["source"] == "trained"} == {8}


@pytest.mark.ray
def test_a_search_is_one_run_of_mlflow_with_a_child_for_each_trial(grid, storage) -> None:
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("pft").experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == Path(grid["run_dir"]).name]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {run.info.run_name for run in children} == {trial["run_id"] for trial in report(grid)["trials"]}
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "report.json", "table.csv", "chosen.yaml", "heat_map.svg", "accuracy.svg"} <= files


@pytest.mark.ray
def test_the_picked_policy_is_the_champion_and_its_files_are_whole(grid, storage) -> None:
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    assert grid["model"] == "quickstart@champion"
    version = client.get_model_version_by_alias("quickstart", "champion")
    chosen = report(grid)["pick"]
    assert version.tags["run_dir"] == report(grid)["trials"][chosen["trial"]]["run_dir"]
    ref = ModelRef.load(Path(version.source.removeprefix("file://")))
    assert Path(str(ref.adapter), "adapter_model.safetensors").is_file()


@pytest.mark.ray
def test_the_chosen_ratio_is_a_recipe_that_trains_it(grid) -> None:
    chosen = load_config(grid["recipe"])
    assert (chosen.train.alpha, chosen.train.beta) == (grid["alpha"], grid["beta"])
    assert (chosen.name, chosen.data, chosen.model) == ("quickstart-chosen", "toyworld", "toyworld")


@pytest.mark.ray
def test_a_finished_search_is_not_run_again(grid, storage) -> None:
    begun = time.monotonic()
    assert job.run(config(storage, *RATIOS)) == grid
    assert time.monotonic() - begun < 10  # a training takes longer than to read a result


def held_by_ray() -> tuple[list[str], list[str], float]:
    """Placement groups that hold resources, living actors of Tune and Train, and free CPUs."""
    groups = [g["placement_group_id"] for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
    here = ray.get_runtime_context().gcs_address
    alive = [actor.class_name for actor in list_actors(here, filters=[("state", "=", "ALIVE")])]
    actors = [name for name in alive if "trainable" in name.lower() or "Train" in name]
    return groups, actors, ray.available_resources().get("CPU", 0)


def wait_until_nothing_is_held(cpus: float) -> None:
    deadline = time.monotonic() + 30
    while (held := held_by_ray()) != ([], [], cpus) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert held == ([], [], cpus)


def stopped(found: dict) -> Sequence[dict]:
    return [trial for trial in found["trials"] if trial["status"] == "stopped"]


@pytest.mark.ray
def test_trials_that_are_stopped_early_leave_nothing_behind(ray_cluster, storage) -> None:
    cpus = ray.available_resources()["CPU"]
    found = report(job.run(config(storage, "search.alphas=[0,0.25,0.5,1]", "search.betas=[0,0.25,0.5,1]"), mode="asha"))
    assert len(stopped(found)) >= 4
    for trial in stopped(found):
        assert trial["worse_pole"] is None
        assert 1 <= len(trial["rung_losses"]) <= 2
    assert found["pick"] is not None
    wait_until_nothing_is_held(cpus)
