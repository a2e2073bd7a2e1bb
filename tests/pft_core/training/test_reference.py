"""Reference log-probabilities: scores of the model without its adapter, computed once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from pft_core.encoding.batching import collate
from pft_core.policies.identity import base_digest
from pft_core.policies.model import add_lora, load_base
from pft_core.policies.settings import LoraSettings
from pft_core.scoring.scorer import BranchScorer
from pft_core.training.reference import reference_file, reference_logps
from tests.builders import MemoryStore, random_trees

CPU = torch.device("cpu")
TREES = random_trees(7)


def scorer(folder: Path) -> BranchScorer:
    base = load_base(str(folder), precision="fp32", gradient_checkpointing=False, device=CPU)
    model = add_lora(base, LoraSettings(r=4, alpha=8, dropout=0.3, target_modules=["q_proj"]), seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    return BranchScorer(model).train()


def test_references_are_the_scores_of_the_bare_base_in_the_order_of_the_store(tiny_qwen2, tmp_path) -> None:
    trained = scorer(tiny_qwen2)
    file = tmp_path / "reference.safetensors"
    got = reference_logps(MemoryStore(TREES), trained, file=file, tokens_per_batch=60, precision="fp32", device=CPU)
    base = load_base(str(tiny_qwen2), precision="fp32", gradient_checkpointing=False, device=CPU)
    with torch.no_grad():
        want = BranchScorer(base)(collate(TREES)).numpy().reshape(-1, 2)
        adapted = trained.eval()(collate(TREES)).numpy().reshape(-1, 2)
    assert np.allclose(got, want, rtol=1e-5)
    assert not np.allclose(got, adapted, rtol=1e-2)


def test_a_second_run_reads_the_file_and_runs_no_model(tiny_qwen2, tmp_path) -> None:
    trained, file = scorer(tiny_qwen2), tmp_path / "reference.safetensors"
    first = reference_logps(MemoryStore(TREES), trained, file=file, tokens_per_batch=60, precision="fp32", device=CPU)
    trained.model = None
    again = reference_logps(MemoryStore(TREES), trained, file=file, tokens_per_batch=60, precision="fp32", device=CPU)
    assert np.array_equal(first, again)
    assert [p.name for p in tmp_path.iterdir()] == ["reference.safetensors"]


def test_the_training_mode_is_restored(tiny_qwen2, tmp_path) -> None:
    trained = scorer(tiny_qwen2)
    reference_logps(
        MemoryStore(TREES), trained, file=tmp_path / "r.safetensors", tokens_per_batch=60, precision="fp32", device=CPU
    )
    assert trained.training


@pytest.mark.parametrize("change", ["weights", "precision", "nothing"])
def test_the_file_name_depends_on_weights_and_precision(tiny_qwen2, tmp_path, change: str) -> None:
    copies = [tmp_path / "a", tmp_path / "b"]
    for folder in copies:
        folder.mkdir()
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_bytes((tiny_qwen2 / name).read_bytes())
    if change == "weights":
        weights = copies[1] / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    precisions = ("fp32", "bf16" if change == "precision" else "fp32")
    names = {
        reference_file(tmp_path, base=str(folder), precision=precision).name
        for folder, precision in zip(copies, precisions, strict=True)
    }
    assert len(names) == (1 if change == "nothing" else 2)


def test_a_hub_model_is_identified_by_its_name() -> None:
    assert base_digest("org/name") != base_digest("org/other")


def test_a_folder_is_identified_by_its_weights_in_either_format(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"one")
    before = base_digest(str(folder))
    assert base_digest("~/base") == before
    (folder / "pytorch_model.bin").write_bytes(b"two")
    assert base_digest(str(folder)) != before


@pytest.mark.parametrize("damage", ["cut", "of other pairs"])
def test_a_damaged_or_mismatched_file_is_recomputed(tiny_qwen2, tmp_path, damage: str) -> None:
    trained, file = scorer(tiny_qwen2), tmp_path / "reference.safetensors"
    first = reference_logps(MemoryStore(TREES), trained, file=file, tokens_per_batch=60, precision="fp32", device=CPU)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    else:
        save_file({"logps": np.zeros((3, 2), dtype=np.float32)}, file)
    again = reference_logps(MemoryStore(TREES), trained, file=file, tokens_per_batch=60, precision="fp32", device=CPU)
    assert np.array_equal(first, again)
