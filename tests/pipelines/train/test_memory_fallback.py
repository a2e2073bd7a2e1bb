"""Runs out of memory continue with less, and end with the same policy."""

import re
from pathlib import Path

import pytest
import torch
from ray.train import TrainingFailedError
from safetensors.torch import load_file

from pft_core.training import memory
from pft_core.training.engines.torch_engine import TorchEngine
from pft_core.training.memory_fallback import OutOfMemoryError
from pipelines.config import RunConfig
from pipelines.jobs.user_errors import unwrap_user_error
from pipelines.train import fitting, job
from pipelines.train.encoding import encode_layers
from pipelines.train.local_training import train_here
from pipelines.train.resolved_run import resolve
from tests.builders import record, write_dataset

CPU = torch.device("cpu")


def config(model: Path, tmp_path: Path, *, dropout: float = 0.1, **train) -> RunConfig:
    data = tmp_path / "data"
    if not data.is_dir():
        write_dataset(data, [record(n) for n in range(12)])
    settings = {"pairs_per_step": 4, "epochs": 2, "lr": 1e-2, "warmup_steps": 1, "precision": "fp32"}
    return RunConfig(
        name="t", data=str(data), model=str(model), storage=str(tmp_path),
        lora={"r": 4, "alpha": 8, "dropout": dropout},
        train={**settings, "checkpoint_every": 2, "tokens_per_microbatch": 600, **train}, engine={"name": "torch"},
    )  # fmt: skip


def trained(chosen: RunConfig, folder: Path) -> dict[str, torch.Tensor]:
    run = resolve(chosen)
    train_here(run, encode_layers(run), folder, log=lambda step, metrics: None, device=CPU)
    return load_file(folder / "adapter" / "adapter_model.safetensors")


ON_CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
ON_CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")


def run_out_at(monkeypatch: pytest.MonkeyPatch, *calls: int, error: RuntimeError = ON_CPU) -> list[int]:
    """Let these backward passes, counted over all attempts, run out of memory; return the list of passes."""
    backward, made = TorchEngine.backward, [0]

    def failing(self: TorchEngine, loss: torch.Tensor, *, is_last: bool) -> None:
        made[0] += 1
        if made[0] in calls:
            raise error
        backward(self, loss, is_last=is_last)

    monkeypatch.setattr(TorchEngine, "backward", failing)
    return made


@pytest.mark.parametrize("error", [ON_CPU, ON_CUDA])
def test_a_run_out_of_memory_continues_with_less_and_ends_with_the_same_policy(
    error, tiny_qwen2, tmp_path, monkeypatch, capsys
) -> None:
    chosen = config(tiny_qwen2, tmp_path)
    whole = trained(chosen, tmp_path / "whole")
    run_out_at(monkeypatch, 4, error=error)
    spared = trained(chosen, tmp_path / "spared")
    assert all(torch.equal(whole[name], spared[name]) for name in whole)
    said = capsys.readouterr().err
    assert said.count("continues from its last checkpoint with activations recomputed") == 1


@pytest.mark.parametrize("error", [ON_CPU, ON_CUDA])
def test_a_run_that_runs_out_twice_halves_its_micro_batches(error, tiny_qwen2, tmp_path, monkeypatch, capsys) -> None:
    # Other micro-batches would draw other dropout.
    chosen = config(tiny_qwen2, tmp_path, dropout=0.0)
    whole = trained(chosen, tmp_path / "whole")
    run_out_at(monkeypatch, 4, 6, error=error)
    spared = trained(chosen, tmp_path / "spared")
    assert "with half as many tokens at once" in capsys.readouterr().err
    # The same update, summed in another order.
    assert all(torch.allclose(whole[name], spared[name], atol=1e-5) for name in whole)


@pytest.mark.parametrize("error", [ON_CPU, ON_CUDA])
@pytest.mark.parametrize("calls", [{"gradient_checkpointing": False}, {"gradient_checkpointing": "auto"}])
def test_a_run_without_a_fallback_left_says_what_to_set(tiny_qwen2, tmp_path, monkeypatch, calls, error) -> None:
    run_out_at(monkeypatch, *range(1, 100), error=error)
    with pytest.raises(OutOfMemoryError, match=r"out of memory: up to .* lower train\.tokens_per_microbatch"):
        trained(config(tiny_qwen2, tmp_path, **calls), tmp_path / "run")


@pytest.mark.parametrize("error", [ON_CPU, ON_CUDA, MemoryError()])
@pytest.mark.parametrize("place", ["build_model", "plan_memory"])
def test_a_model_that_does_not_fit_into_memory_is_one_message(tiny_qwen2, tmp_path, monkeypatch, place, error) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(fitting, place, full)
    said = r"before the first step: only \S+ GB are free besides the model: .* or give each worker more memory$"
    with pytest.raises(OutOfMemoryError, match=said):
        trained(config(tiny_qwen2, tmp_path), tmp_path / "run")


@pytest.mark.parametrize(("free", "maps"), [(1e12, False), (1e5, True)])
def test_a_large_run_returns_freed_tensors_to_the_system(tiny_qwen2, tmp_path, monkeypatch, free, maps) -> None:
    mapped: list[bool] = []
    monkeypatch.setattr(fitting, "map_large_blocks", lambda: mapped.append(True))
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    trained(config(tiny_qwen2, tmp_path, max_steps=1), tmp_path / "run")
    assert bool(mapped) is maps


FAULTS = """
import os, signal
from pathlib import Path
from pft_core.training import memory
from pft_core.training import memory
from pft_core.training.engines.torch_engine import TorchEngine

backward = TorchEngine.backward

def failing(self, loss, *, is_last):
    attempts = Path(__file__).with_name("attempts")
    attempts.touch()
    attempt = len(attempts.read_text())
    if attempt < NUM_FAULTS:
        attempts.write_text("x" * (attempt + 1))
        if attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError
    backward(self, loss, is_last=is_last)

TorchEngine.backward = failing
memory.free_bytes = lambda device: 100_000.0 if Path(__file__).with_name("attempts").exists() else 1e9
"""


def config_with_faults(model: Path, tmp_path: Path, number: int) -> RunConfig:
    """Return a run whose attempts fail: one runs out of memory, one is killed while memory is tight, and so on."""
    (tmp_path / "faults.py").write_text(FAULTS.replace("NUM_FAULTS", str(number)))
    return config(model, tmp_path, dropout=0.0).model_copy(update={"plugins": [str(tmp_path / "faults.py")]})


@pytest.mark.ray
@pytest.mark.slow  # starts workers several times; the fallbacks themselves are tested above
@pytest.mark.timeout(600)
def test_workers_out_of_memory_or_killed_for_it_restart_with_less(ray_cluster, tiny_qwen2, tmp_path, capsys) -> None:
    chosen = config_with_faults(tiny_qwen2, tmp_path, 2)
    result = job.run(chosen)
    assert result["steps"] == 6
    said = [line for line in " ".join(capsys.readouterr().err.split()).split("out of memory: ") if "continues" in line]
    assert ["recomputed" in line for line in said] == [True, False]
    assert "half as many tokens" in said[1]
    whole = trained(config(tiny_qwen2, tmp_path, dropout=0.0), tmp_path / "whole")
    spared = load_file(Path(result["adapter"]) / "adapter_model.safetensors")
    assert all(torch.allclose(whole[name], spared[name], atol=1e-5) for name in whole)


@pytest.mark.ray
@pytest.mark.slow  # starts workers several times; the fallbacks themselves are tested above
@pytest.mark.timeout(600)
def test_workers_without_a_fallback_left_end_the_run_with_one_message(ray_cluster, tiny_qwen2, tmp_path) -> None:
    with pytest.raises(TrainingFailedError) as raised:
        job.run(config_with_faults(tiny_qwen2, tmp_path, 99))
    mistake = unwrap_user_error(raised.value)
    assert re.match(r"out of memory: up to \d+ tokens at once need about \S+ GB .* lower train\.tokens", str(mistake))
    assert len((tmp_path / "attempts").read_text()) == 3  # as planned, recomputed, halved
