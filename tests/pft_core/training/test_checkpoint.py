"""Checkpoints in one process; test_engine.py saves and resumes on two ranks."""

import json
from pathlib import Path

import pytest
import torch

from pft_core.training import checkpoint
from pft_core.training.checkpoint import CheckpointError
from tests.pft_core.training.test_engine import ENGINES, TORCH, make_engine, one_step

PROGRESS = {"steps_done": 2, "best": None}


def save(folder: Path, engine) -> Path:
    checkpoint.save(folder, engine=engine, progress=PROGRESS, rank=0, world_size=1)
    return folder


@pytest.fixture(scope="module")
def saved(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    engine = make_engine(tiny_qwen2, *TORCH)
    one_step(engine, 0)
    return save(tmp_path_factory.mktemp("checkpoint"), engine)


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of the checkpoint that a test may damage."""
    for file in saved.rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(saved)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    return tmp_path


def state_file(folder: Path) -> Path:
    return folder / "rank-00000" / "engine.safetensors"


@pytest.mark.parametrize(("name", "stage"), ENGINES)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    tiny_qwen2: Path, tmp_path: Path, name: str, stage: int
) -> None:
    engine = make_engine(tiny_qwen2, name, stage)
    _ = [one_step(engine, step) for step in (0, 1)]
    save(tmp_path, engine)
    curve = [one_step(engine, step) for step in (2, 3)]
    state = engine.gathered_state()
    # Resume in a new engine, and in this one, which has trained further.
    for resumed in (make_engine(tiny_qwen2, name, stage), engine):
        assert checkpoint.restore(tmp_path, engine=resumed) == PROGRESS
        assert [one_step(resumed, step) for step in (2, 3)] == curve
        assert all(torch.equal(weight, state[key]) for key, weight in resumed.gathered_state().items())


def test_a_checkpoint_before_the_first_step_resumes(tiny_qwen2: Path, tmp_path: Path) -> None:
    engine = make_engine(tiny_qwen2, *TORCH)
    save(tmp_path, engine)
    first = one_step(engine, 0)
    checkpoint.restore(tmp_path, engine=engine)
    assert one_step(engine, 0) == first


def test_only_trained_weights_and_two_moments_are_written(tiny_qwen2: Path, saved: Path) -> None:
    num_trained = sum(w.numel() for w in make_engine(tiny_qwen2, *TORCH).trained.values())
    # Weight and two moments, 4 bytes each; the rest is the header and one step counter per weight.
    assert 12 * num_trained < state_file(saved).stat().st_size < 12 * num_trained + 16_384


def test_an_undamaged_checkpoint_passes_verification(saved: Path) -> None:
    manifest = checkpoint.verify_checkpoint(saved)
    assert manifest["progress"] == PROGRESS
    assert list(manifest["files"]) == ["rank-00000/engine.safetensors"]


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("name", ["rank-00000/engine.safetensors", "MANIFEST.json"])
@pytest.mark.parametrize("damage", [flip_a_bit, cut_in_half, Path.unlink])
def test_damage_raises_an_error_that_names_the_file(copied: Path, tiny_qwen2: Path, damage, name: str) -> None:
    damage(copied / name)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.verify_checkpoint(copied)
    engine = make_engine(tiny_qwen2, *TORCH)
    before = engine.gathered_state()
    with pytest.raises(CheckpointError, match=name):
        checkpoint.restore(copied, engine=engine)
    assert all(torch.equal(weight, before[key]) for key, weight in engine.gathered_state().items())


def test_changed_progress_counts_as_damage(copied: Path) -> None:
    file = copied / "MANIFEST.json"
    manifest = json.loads(file.read_text())
    manifest["progress"]["steps_done"] = 1
    file.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.verify_checkpoint(copied)


def test_another_world_size_is_refused_with_the_value_to_set(copied: Path, tiny_qwen2: Path) -> None:
    engine = make_engine(tiny_qwen2, *TORCH)
    content = checkpoint.verify_checkpoint(copied) | {"world_size": 2}
    (copied / "MANIFEST.json").write_text(json.dumps(content | {"digest": checkpoint.digest(content)}))
    with pytest.raises(CheckpointError, match="num_workers=2"):
        checkpoint.restore(copied, engine=engine)


def test_a_write_error_is_one_checkpoint_error(tiny_qwen2: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
        save(tmp_path / "file", make_engine(tiny_qwen2, *TORCH))
