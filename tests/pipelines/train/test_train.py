"""Training through Ray Train, on tiny models."""

import json
import math
import pickle
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from pft_core.data.manifest import DatasetManifest
from pft_core.errors import UserError
from pft_core.files import file_sha256
from pft_core.policies.model_ref import ModelRef
from pft_core.training.engines.engine import NonFiniteError
from pft_core.training.local_context import LocalContext
from pft_core.training.loop import FitResult
from pipelines.config import RunConfig
from pipelines.progress import board
from pipelines.train import job as train
from pipelines.train import resolved_run
from pipelines.train.encoding import encode_layers
from pipelines.train.fitting import build_and_fit
from pipelines.train.resolved_run import resolve
from pipelines.train.worker import encode
from tests.builders import record, write_dataset

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("train") / "data", [record(n) for n in range(12)])


def config(model: Path, data: Path, storage: Path, **sections) -> RunConfig:
    settings = {
        "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
        "train": {
            "pairs_per_step": 4, "epochs": 2, "lr": 1e-2, "warmup_steps": 1, "precision": "fp32", "checkpoint_every": 2,
        },
        "engine": {"name": "torch"},
        "scaling": {"num_workers": 1, "threads_per_worker": 1},  # as the plain run, for equal bits
    }  # fmt: skip
    for name, values in sections.items():
        settings[name] = settings.get(name, {}) | values if isinstance(values, dict) else values
    return RunConfig(name="t", data=str(data), model=str(model), storage=str(storage), **settings)


def fit_plainly(chosen: RunConfig, context: LocalContext) -> FitResult:
    run = resolve(chosen)
    return build_and_fit(run, encode_layers(run), context)


def losses(run_dir: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss_first"], row["loss_second"]) for row in rows if "loss_first" in row]


def test_a_ray_run_equals_the_plain_run_and_is_reused(ray_cluster, tiny_qwen2, data, tmp_path) -> None:
    chosen = config(tiny_qwen2, data, tmp_path)
    result = train.run(chosen)
    plain: list[tuple[float, float]] = []
    context = LocalContext(
        tmp_path / "plain",
        device=torch.device("cpu"),
        log=lambda s, m: plain.append((m["loss_first"], m["loss_second"])),
    )
    fit_plainly(chosen, context)
    assert losses(Path(result["run_dir"])) == plain
    assert (result["steps"], result["pairs"], result["resumed_from"]) == (6, 24, None)
    assert "first pole" in (Path(result["run_dir"]) / "report.html").read_text()
    ref = ModelRef.load(Path(result["model_ref"]))
    assert ref.adapter_sha256 == file_sha256(Path(result["adapter"]) / "adapter_model.safetensors")
    whole = tmp_path / "plain" / "checkpoint-00000006" / "rank-00000" / "policy" / "adapter_model.safetensors"
    assert ref.adapter_sha256 == file_sha256(whole)

    written = (Path(result["run_dir"]) / "job.json").stat().st_mtime_ns
    assert train.run(chosen) == result
    assert (Path(result["run_dir"]) / "job.json").stat().st_mtime_ns == written


def test_a_preference_objective_under_ray_equals_the_plain_run_and_mlflow_has_its_diagnostics(
    ray_cluster, tiny_qwen2, data, tmp_path
) -> None:
    chosen = config(tiny_qwen2, data, tmp_path, train={"objective": "dpo", "diagnostics_every": 2})
    run_dir = Path(train.run(chosen)["run_dir"])
    plain: list[tuple[float, float]] = []
    context = LocalContext(
        tmp_path / "plain",
        device=torch.device("cpu"),
        log=lambda s, m: plain.append((m["loss_first"], m["loss_second"])),
    )
    fit_plainly(chosen, context)
    assert losses(run_dir) == plain
    # Before the first update, the policy equals its reference: a loss of log 2 on each side.
    assert plain[0] == pytest.approx((math.log(2), math.log(2)), abs=1e-5)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    measured = {"gap", "displacement_first", "rejected_displacement_second", "log_ratio_first", "gradient_cosine"}
    assert measured <= set(run.data.metrics)
    assert len(client.get_metric_history(run.info.run_id, "gradient_cosine")) == 3  # 6 steps, every second


@pytest.mark.parametrize("validates", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_empty_list_and_a_damaged_checkpoint_cost_only_the_steps_since_the_last_valid_one(
    ray_cluster, tiny_qwen2, data, tmp_path, monkeypatch, validates
) -> None:
    monkeypatch.setattr(board, "LINE_EVERY_S", 3600.0)  # leaves the first and last step
    extra = {"validation_data": str(data), "train": {"validate_every": 2}} if validates else {}
    chosen = config(tiny_qwen2, data, tmp_path, **extra)
    first = train.run(chosen)
    run_dir = Path(first["run_dir"])
    metrics = (run_dir / "metrics.jsonl").read_text().splitlines()
    policies = {path.parent.name: file_sha256(path) for path in run_dir.glob("adapter*/adapter_model.safetensors")}
    assert set(policies) == ({"adapter", "adapter_best"} if validates else {"adapter"})
    job = json.loads((run_dir / "job.json").read_text())
    (run_dir / "job.json").write_text(json.dumps(job | {"status": "running"}))
    (run_dir / "checkpoints" / "checkpoint_manager_snapshot.json").write_text("")  # as left by a full disk
    (run_dir / "checkpoints" / "checkpoint_unfinished" / "rank-00000").mkdir(parents=True)
    newest = max((run_dir / "checkpoints").glob("checkpoint_*/MANIFEST.json"), key=steps_done).parent
    damaged = newest / "rank-00000" / "policy" / "adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    again = train.run(chosen)
    assert (again["resumed_from"], again["steps"]) == (4, 6)
    assert policies == {name: file_sha256(run_dir / name / "adapter_model.safetensors") for name in policies}
    assert file_sha256(damaged) not in policies.values()
    assert [json.loads(line)["step"] for line in metrics] == list(range(1, 7))
    assert losses(run_dir) == [(row["loss_first"], row["loss_second"]) for row in map(json.loads, metrics)]
    assert not (run_dir / "checkpoints" / "checkpoint_unfinished").exists()
    if validates:
        assert_log_tells_both_starts((run_dir / "run.log").read_text())


def assert_log_tells_both_starts(log: str) -> None:
    """A run's log has the workers' messages in order, and the first and last step of each start."""
    told = re.findall(
        r" (step \d|activation checkpointing|continuing from .*|checkpoint of step \d saved, val_loss_first)", log
    )
    saved = [f"checkpoint of step {step} saved, val_loss_first" for step in (2, 4, 6)]
    started = ["activation checkpointing", "step 1", *saved[:2], "step 6", saved[2]]
    continued = ["activation checkpointing", "continuing from the checkpoint of step 4", "step 5", "step 6", saved[2]]
    assert told == started + continued


def steps_done(manifest: Path) -> int:
    return json.loads(manifest.read_text())["progress"]["steps_done"]


def test_zero_3_on_two_workers_trains_a_llama_and_validates(ray_cluster, tiny_llama, data, tmp_path) -> None:
    validation = write_dataset(tmp_path / "validation", [record(n) for n in range(20, 25)])
    chosen = config(
        tiny_llama, data, tmp_path, engine={"name": "deepspeed", "zero_stage": 3}, scaling={"num_workers": 2},
        train={"validate_every": 3}, validation_data=str(validation),
    )  # fmt: skip
    result = train.run(chosen)
    run_dir = Path(result["run_dir"])
    assert all(first > 0 and second > 0 for first, second in losses(run_dir))
    assert (run_dir / "adapter_best" / "adapter_model.safetensors").is_file()
    assert any("val_loss" in line for line in (run_dir / "metrics.jsonl").read_text().splitlines())


def test_full_fine_tuning_writes_a_loadable_model(ray_cluster, tiny_qwen2, data, tmp_path) -> None:
    result = train.run(config(tiny_qwen2, data, tmp_path, lora=None, train={"max_steps": 2, "lr": 1e-3}))
    ref = ModelRef.load(Path(result["model_ref"]))
    assert result["adapter"] is None
    assert (Path(ref.weights) / "model.safetensors").is_file()
    assert (Path(ref.weights) / "tokenizer.json").is_file()


def test_too_many_workers_for_the_cluster_are_refused_before_waiting(ray_cluster, tiny_qwen2, data, tmp_path) -> None:
    with pytest.raises(UserError, match=r"scaling.num_workers=99 needs 99 CPU, but the cluster has 6"):
        train.run(config(tiny_qwen2, data, tmp_path, scaling={"num_workers": 99}))
    assert not list(tmp_path.glob("t-*"))


def test_target_modules_that_match_nothing_are_a_user_error(ray_cluster, tiny_qwen2, data, tmp_path) -> None:
    with pytest.raises(UserError, match="q_porj"):
        train.run(config(tiny_qwen2, data, tmp_path, lora={"target_modules": ["q_porj"]}))


def test_a_non_finite_loss_names_the_rows_and_what_to_try(tiny_qwen2, data, tmp_path) -> None:
    broken = Path(shutil.copytree(tiny_qwen2, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    chosen = config(broken, data, tmp_path / "runs")
    with pytest.raises(
        NonFiniteError,
        match=r"step 1 \(train.lr=[^)]*\): the loss is not finite; examples ([^,]*, ){2}[^,]* and \d+ more; "
        r"this update changed no weight: try a lower train.lr or a longer train.warmup_steps, and check these rows: "
        rf"row \d+ of {data}, 'The town has plan \d+ .* more\. Look at the first one: "
        rf"pft show prompt {data} --model {broken} --row \d+$",
    ):
        fit_plainly(chosen, LocalContext(tmp_path / "checkpoints", device=torch.device("cpu")))


@pytest.mark.parametrize(
    ("template", "message"),
    [(None, "has no chat template"), ("{{ raise_exception('no') }}", r"refuses a user's message alone \(no\)")],
)
def test_an_unusable_chat_template_is_reported_before_ray_starts(tiny_qwen2, data, tmp_path, template, message):
    folder = Path(shutil.copytree(tiny_qwen2, tmp_path / "m"))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=message):
        train.refuse_missing_inputs(config(folder, data, tmp_path, prompt={"template": "chat"}))


def test_data_without_a_pair_that_fits_is_refused(ray_cluster, tiny_qwen2, data, tmp_path) -> None:
    with pytest.raises(UserError, match=r"encoding.max_length=16 leaves 0 of 12 pairs"):
        train.run(config(tiny_qwen2, data, tmp_path, encoding={"max_length": 16}))


def test_inputs_are_read_once_in_the_driver_and_once_in_a_worker(
    ray_cluster, tiny_qwen2, data, tmp_path, monkeypatch
) -> None:
    counts: Counter[str] = Counter()

    def counted(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def call(*args, **kwargs):
            counts[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, staticmethod(call) if isinstance(owner, type) else call)

    counted(DatasetManifest, "load")
    counted(AutoTokenizer, "from_pretrained")
    counted(resolved_run, "build_objective")
    train.run(config(tiny_qwen2, data, tmp_path, validation_data=str(data), train={"validate_every": 2}))
    # Two manifests, for training and validation; the tokenizer is loaded only where it tokenizes.
    assert counts == {"load": 2, "build_objective": 1}

    # A worker gets the resolved run, encodes both data sets and trains.
    plain = config(tiny_qwen2, data, tmp_path / "plain", validation_data=str(data), train={"validate_every": 2})
    arrived = pickle.loads(pickle.dumps(resolve(plain)))
    counts.clear()
    context = LocalContext(tmp_path / "plain", device=torch.device("cpu"))
    build_and_fit(arrived, encode(arrived).layers, context)
    assert counts == {"from_pretrained": 1}
