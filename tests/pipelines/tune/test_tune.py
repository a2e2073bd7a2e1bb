"""Searches end to end: tiny, with real Ray Tune, Ray Train and MLflow."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import ray
from mlflow import MlflowClient
from ray.util.state import list_actors

from pft_core.errors import UserError
from pft_core.policies.model_ref import ModelRef
from pipelines.config import load_config
from pipelines.tune import job
from tests.builders import record, write_dataset

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
    assert time.monotonic() - begun < 10  # a training takes longer than reading a result


def held_by_ray() -> tuple[set[str], set[str], float]:
    """Return placement groups that hold resources, live actors of Tune and Train, and free CPUs."""
    table = ray.util.placement_group_table()
    groups = {group["placement_group_id"] for group in table.values() if group["state"] != "REMOVED"}
    here = ray.get_runtime_context().gcs_address
    alive = list_actors(here, filters=[("state", "=", "ALIVE")])
    actors = {a.actor_id for a in alive if "trainable" in a.class_name.lower() or "Train" in a.class_name}
    return groups, actors, ray.available_resources().get("CPU", 0)


def wait_until_nothing_more_is_held(before: tuple[set[str], set[str], float]) -> None:
    """Other tests of the session may have left some; a search must not add any."""
    deadline = time.monotonic() + 30
    while (more := more_than(before)) != (set(), set(), 0) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert more == (set(), set(), 0)


def more_than(before: tuple[set[str], set[str], float]) -> tuple[set[str], set[str], float]:
    groups, actors, cpus = held_by_ray()
    return groups - before[0], actors - before[1], max(0, before[2] - cpus)


def stopped(found: dict) -> Sequence[dict]:
    return [trial for trial in found["trials"] if trial["status"] == "stopped"]


@pytest.mark.ray
def test_trials_that_are_stopped_early_leave_nothing_behind(ray_cluster, storage) -> None:
    before = held_by_ray()
    found = report(job.run(config(storage), mode="asha"))
    assert len(stopped(found)) >= 4
    for trial in stopped(found):
        assert trial["worse_pole"] is None
        assert 1 <= len(trial["rung_losses"]) <= 2
    assert found["pick"] is not None
    wait_until_nothing_more_is_held(before)


@pytest.mark.parametrize(
    ("overrides", "mode", "message"),
    [
        (["train.objective=mixed"], "grid", "train.objective=mixed does not depend on the ratio of alpha to beta"),
        (["train.objective=dpo_nll"], "grid", "train.objective=dpo_nll does not depend on the ratio"),
        (["data=somewhere"], "grid", "validation_data is not set, but the search picks the ratio on it"),
        (["search.space={train.rate: [1]}"], "grid", r"search\.space: train\.rate: unknown key"),
        (["search.space={train.lr: [fast]}"], "optuna", "search.space: train.lr='fast': expected a number"),
        (["search.space={train.lr: {low: 1, high: 2}}"], "asha", "is a range: give a list of values"),
        (["search.alphas=[1]", "search.betas=[1]"], "soup", "soups need at least 3 ratios, and the grid has 1"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_starts(tmp_path, overrides, mode, message) -> None:
    with pytest.raises(UserError, match=message):
        job.run(config(tmp_path, *overrides), mode=mode)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.alphas=[]", "search.alphas=.*at least 1 item"),
        ("search.num_trials=0", "search.num_trials=0: expected greater than 0"),
        ("search.space={train.lr: []}", "search.space.train.lr=.*at least 1 item"),
        ("search.metric=accuracy", "search.metric='accuracy': expected 'worse_pole', 'both_right'"),
        ("search.space={train.alpha: [1]}", "train.alpha: set search.alphas and search.betas instead"),
        ("search.t={low: 1, high: 1}", "search.t: low=1 is not below high=1"),
        ("search.t={low: -900, high: 1}", "t goes beyond 20"),
        ("search.alphas=[1e-300, 1]", "the weight 1e-300 is too small"),
        ("search.space={scaling.num_workers: [99]}", "scaling.num_workers cannot be searched: give a key of train or"),
        ("search.space={train: [{alpha: 3.0}]}", "space: train cannot be searched"),
        ("search.space={train.lr: [0.1, 0.1]}", "train.lr: 0.1 is repeated"),
        ("search.space={train.objective: [pft, mixed]}", "'mixed' does not depend on the ratio alone"),
    ],
)
def test_an_empty_or_unknown_search_is_refused_by_the_config(tmp_path, override, message) -> None:
    with pytest.raises(UserError, match=message):
        config(tmp_path, override)


def test_weights_that_are_all_zero_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="alphas and betas hold only 0, which trains nothing"):
        config(tmp_path, "search.alphas=[0]", "search.betas=[0]")


@pytest.mark.ray
def test_more_gpus_than_the_cluster_has_are_refused_before_anything_starts(ray_cluster, tmp_path) -> None:
    with pytest.raises(UserError, match=r"a trial needs .*1 GPU, but the cluster has"):
        job.run(config(tmp_path, "scaling.use_gpu=true"))
    assert not (tmp_path / "tune").exists()


@pytest.mark.ray
def test_too_few_scenarios_for_an_interval_are_refused_before_anything_starts(ray_cluster, storage) -> None:
    with pytest.raises(UserError, match=r"'\w+': an interval needs at least 2 scenarios.*raise search.limit_per_axis"):
        job.run(config(storage, "search.limit_per_axis=1"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_with_a_failed_trial_reports_the_others_and_tries_it_again(ray_cluster, storage) -> None:
    layers = "search.space={lora.target_modules: [all-linear, [nope]]}"
    search = config(storage, "search.alphas=[1]", "search.betas=[1]", layers)
    result = job.run(search)
    assert (result["status"], result["failed"]) == ("FAILED", 1)
    assert [trial["status"] for trial in report(result)["trials"]] == ["finished", "failed"]
    assert report(result)["warnings"][0].startswith("1:1 with lora.target_modules=['nope'] failed: ")
    finished = Path(report(result)["trials"][0]["run_dir"]) / "job.json"
    before = finished.read_text()
    assert job.run(search)["failed"] == 1
    assert finished.read_text() == before


@pytest.mark.ray
def test_a_figure_that_no_trial_reports_is_refused(ray_cluster, tmp_path) -> None:
    data = write_dataset(tmp_path / "data", [record(n) for n in range(8)])
    search = config(tmp_path, f"data={data}", f"validation_data={data}", "search.form=all")
    with pytest.raises(UserError, match=r"search.form=all: no trial can report it, because .* has only the forms one"):
        job.run(search)


@pytest.mark.ray
@pytest.mark.slow
def test_trials_on_ray_train_stop_early_too_and_leave_nothing_behind(ray_cluster, storage) -> None:
    before = held_by_ray()
    # One trial at a time, so that the second is compared with the first.
    alone = f"scaling.resources_per_worker={{CPU: {min(6, os.cpu_count() or 1)}}}"
    workers = ("search.trials=ray_train", "engine.name=torch", "scaling.num_workers=1", alone)
    search = config(storage, *workers, "search.alphas=[1]", "search.betas=[0,1]")
    found = report(job.run(search, mode="asha"))
    assert [trial["status"] for trial in found["trials"]] == ["finished", "stopped"]
    assert len(found["trials"][0]["rung_losses"]) == 3
    wait_until_nothing_more_is_held(before)


@pytest.mark.ray
@pytest.mark.slow
def test_twenty_trials_that_are_stopped_early_leave_nothing_behind(ray_cluster, storage) -> None:
    before = held_by_ray()
    rates = "search.space={train.lr: [1e-2, 8e-3, 6e-3, 4e-3, 2e-3, 1e-3]}"
    found = report(job.run(config(storage, *RATIOS, "search.betas=[0,1,2,4]", rates), mode="asha"))
    assert len(stopped(found)) >= 20
    assert {trial["status"] for trial in found["trials"]} == {"finished", "stopped"}
    wait_until_nothing_more_is_held(before)


@pytest.mark.ray
@pytest.mark.slow
def test_soups_are_held_against_trainings_and_their_ends_are_registered(ray_cluster, storage) -> None:
    ratios = ("search.alphas=[0,1,3]", "search.betas=[0,1,3]", "search.verify=1")
    result = job.run(config(storage, *ratios), mode="soup")
    found = report(result)
    assert [trial["source"] for trial in found["trials"]] == ["trained"] * 3 + ["soup"] * 2 + ["base", "trained"]
    assert {cell["source"] for cell in found["cells"]} == {"base", "trained", "same_ratio", "soup"}
    (line,) = found["verification"]
    assert (line["soup"], line["trained"]) == (3, 6)
    for gap in line["metric"].values():
        assert gap["gap"] == pytest.approx(gap["trained"] - gap["soup"])
        assert gap["low"] <= gap["gap"] <= gap["high"]
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    versions = {
        alias: client.get_model_version_by_alias("quickstart", alias) for alias in ("first", "middle", "second")
    }
    weights = {alias: (version.tags["alpha"], version.tags["beta"]) for alias, version in versions.items()}
    assert weights == {"middle": ("1", "1"), "first": ("3", "0"), "second": ("0", "3")}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_optuna_searches_ratio_and_rate_together(ray_cluster, storage, sampler) -> None:
    space = "search.space={train.lr: {low: 1e-3, high: 1e-2, log: true}}"
    search = config(storage, space, "search.num_trials=3", f"search.sampler={sampler}")
    found = report(job.run(search, mode="optuna"))
    assert [trial["status"] for trial in found["trials"]] == ["finished"] * 3
    assert len(found["cells"]) == 3
    assert all(1e-3 <= trial["changes"]["train.lr"] <= 1e-2 for trial in found["trials"])
    assert found["pick"] is not None


@pytest.mark.ray
@pytest.mark.slow
def test_fresh_searches_anew(ray_cluster, storage) -> None:
    search = config(storage, "search.alphas=[1]", "search.betas=[1]", "search.limit_per_axis=3")
    first = report(job.run(search))["trials"][0]
    started = (Path(first["run_dir"]) / "job.json").read_text()
    again = report(job.run(search, fresh=True))["trials"][0]
    assert again["run_id"] == first["run_id"]
    assert (Path(again["run_dir"]) / "job.json").read_text() != started
