"""A dry run plans what the run does, and starts and writes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from pft_core.encoding.layer import EncodedLayer
from pft_core.errors import UserError
from pft_core.training import memory
from pft_core.training.checkpoint import CHECKPOINT_MANIFEST_NAME
from pft_core.training.local_context import LocalContext
from pft_core.training.memory_fallback import MemoryUse
from pft_core.training.planning import LoopSettings, step_updates
from pipelines.config import RunConfig, load_config
from pipelines.jobs import locked, run_job
from pipelines.train import build_and_fit, dry_run, encode_layers, resolve
from pipelines.train.plan import planned_pairs
from tests.builders import record, write_dataset

CPU = torch.device("cpu")


@pytest.fixture
def config(tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run of two epochs over ten pairs, three a step, and no way to start Ray."""
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("a dry run starts no Ray"))
    data = write_dataset(tmp_path / "data", [record(i, num_options=2 + i % 3) for i in range(10)])
    return load_config("quickstart", [
        f"data={data}", f"model={tiny_qwen2}", f"storage={tmp_path / 'runs'}", "name=mine", "train.max_steps=null",
        "train.epochs=2", "train.pairs_per_step=3", "train.tokens_per_microbatch=400", "scaling.num_workers=1",
        "engine.name=torch", "lora.target_modules=[q_proj, v_proj]", "train.validate_every=0",
    ])  # fmt: skip


def varied(config: RunConfig, **sections: Any) -> RunConfig:
    """Return the config with changed sections."""
    changed = {name: getattr(config, name).model_copy(update=update) for name, update in sections.items()}
    return config.model_copy(update=changed)


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_a_plan_counts_what_the_training_runs(config: RunConfig, tmp_path: Path) -> None:
    before = files_in(tmp_path)
    plan = dry_run(config)
    assert files_in(tmp_path) == before
    run = resolve(config)
    layers = encode_layers(run)
    uses: list[MemoryUse] = []
    context = LocalContext(tmp_path / "checkpoints", device=CPU)
    done = build_and_fit(run, layers, context, report=uses.append)
    assert (plan["steps"]["steps"], plan["steps"]["pairs"]) == (done.steps, done.pairs) == (7, 20)
    assert plan["memory"]["needed"] == round(uses[0].needed)
    assert (plan["memory"]["fits"], plan["memory"]["recomputes"]) == (True, False)
    store = EncodedLayer(Path(layers.train))
    settings = LoopSettings.of(config.train, run.objective, num_pairs=len(store), seed=config.seed, shares_prefix=True)
    updates = [
        update
        for step in range(done.steps)
        for update in step_updates(step, settings=settings, store=store, rank=0, num_ranks=1)
    ]
    num_batches = sum(len(update.batches) for update in updates)
    assert plan["steps"]["microbatches_per_step"] * done.steps == pytest.approx(num_batches)
    assert num_batches > done.steps  # a step has several
    assert plan["steps"]["tokens"] == sum(store.num_tokens(range(10), sides=(0, 1), shares_prefix=True)) * 2


def test_an_encoded_layer_is_counted_and_a_small_data_set_without_one_is_encoded_whole(config, monkeypatch) -> None:
    encoded_here = dry_run(config)
    layer = encode_layers(resolve(config)).train
    monkeypatch.setattr(planned_pairs, "encode_part", lambda *_, **__: pytest.fail("it is encoded"))
    from_layer = dry_run(config)
    assert encoded_here["steps"] == from_layer["steps"]
    assert encoded_here["data"]["train"]["source"] == "all pairs, encoded for this plan"
    assert from_layer["data"]["train"]["layer"] == layer
    assert f"{layer}/" in encoded_here["files"]
    assert f"{layer}/" not in from_layer["files"]
    assert not from_layer["data"]["train"]["is_estimate"]


def test_a_large_data_set_is_estimated_from_a_sample_and_says_so(config, monkeypatch, capfd) -> None:
    whole = dry_run(config)
    monkeypatch.setattr(planned_pairs, "SAMPLE_PAIRS", 4)
    plan = dry_run(config)
    assert (plan["data"]["train"]["is_estimate"], plan["steps"]["is_estimate"]) == (True, True)
    assert (plan["steps"]["steps"], plan["steps"]["pairs"]) == (7, 20)
    assert plan["steps"]["tokens"] == pytest.approx(whole["steps"]["tokens"], rel=0.2)
    assert "an estimate from the first 4 pairs" in capfd.readouterr().err


def test_the_state_of_the_run_is_part_of_the_plan(config: RunConfig, tmp_path: Path) -> None:
    assert dry_run(config)["state"] == "new"
    run_dir = Path(dry_run(config)["run_dir"])

    def cut(run_dir: Path, key: str) -> dict[str, Any]:
        (run_dir / "metrics.jsonl").write_text("{}\n")
        for steps in (2, 5):
            folder = run_dir / "checkpoints" / f"checkpoint-{steps}"
            folder.mkdir(parents=True)
            (folder / CHECKPOINT_MANIFEST_NAME).write_text(json.dumps({"progress": {"steps_done": steps}}))
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        run_job(config, cut, fresh=False, kind="train")
    plan = dry_run(config)
    assert (plan["run_dir"], plan["state"], plan["from_step"]) == (str(run_dir), "continue", 5)
    assert dry_run(config, fresh=True)["state"] == "new"
    with locked(run_dir):
        assert dry_run(config)["state"] == "running"
    run_job(config, lambda *_: {}, fresh=False, kind="train")
    assert dry_run(config)["state"] == "finished"


def test_a_run_that_does_not_fit_says_so(config, monkeypatch, capfd) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1e5)
    plan = dry_run(config)
    assert (plan["memory"]["fits"], plan["memory"]["recomputes"]) == (False, True)
    assert "expected to run out of memory" in capfd.readouterr().err


def test_workers_on_one_machine_share_its_free_memory_without_their_weights(config, monkeypatch) -> None:
    monkeypatch.setattr(memory, "psutil", _Machine(4e9))
    monkeypatch.setattr(memory, "container_bytes", lambda: float("inf"))
    one, four = (dry_run(varied(config, scaling={"num_workers": n}))["memory"] for n in (1, 4))
    assert one["free"] == 4_000_000_000
    assert four["free"] == round((4e9 - 3 * one["weights"]) / 4)  # this process holds the weights of the first


class _Machine:
    """Stands in for psutil on a machine with so many free bytes."""

    def __init__(self, free: float):
        self.available = free

    def virtual_memory(self) -> "_Machine":
        return self


@pytest.mark.skipif(torch.cuda.is_available(), reason="the memory of a GPU is counted where there is one")
def test_memory_that_cannot_be_counted_here_says_why_and_the_rest_is_planned(config: RunConfig) -> None:
    plan = dry_run(varied(config, scaling={"use_gpu": True}))
    assert (plan["memory"]["fits"], plan["steps"]["steps"]) == (None, 7)
    assert plan["memory"]["reason"] == "scaling.use_gpu=true, and this machine has no GPU"


def test_what_would_stop_the_run_stops_the_plan(config: RunConfig) -> None:
    store = EncodedLayer(Path(encode_layers(resolve(config)).train))
    longest = max(store.num_tokens(range(10), sides=(0, 1), shares_prefix=True))
    with pytest.raises(UserError, match="tokens_per_microbatch"):  # though the only step does not hold this pair
        dry_run(varied(config, train={"tokens_per_microbatch": longest - 1, "max_steps": 1, "pairs_per_step": 1}))
    with pytest.raises(UserError, match=r"encoding.max_length=30 leaves 0 of 10 pairs"):
        dry_run(varied(config, encoding={"max_length": 30}))
