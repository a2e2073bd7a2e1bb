"""The runtime environment of training workers."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.config import load_config
from pipelines.train.trainer import JEMALLOC, LARGE_WEIGHTS_BYTES, worker_environment


def environment(model: str | Path, *overrides: str) -> dict[str, Any]:
    threads = "scaling.threads_per_worker=1"
    return worker_environment(load_config("quickstart", [f"model={model}", threads, *overrides]))


@pytest.fixture
def large_model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(LARGE_WEIGHTS_BYTES)  # takes no room on the disk
    return tmp_path


def test_a_small_model_needs_no_process_of_its_own() -> None:
    assert environment("toyworld") == {}
    assert environment("toyworld", "scaling.threads_per_worker=2") == {"env_vars": {"OMP_NUM_THREADS": "2"}}


def test_a_large_model_on_cpus_gets_the_allocator_that_keeps_little_memory(large_model, monkeypatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert environment(large_model) == {"env_vars": {"LD_PRELOAD": str(JEMALLOC)}}
    assert environment(large_model, "scaling.use_gpu=true") == {}


def test_a_users_own_preload_stays(large_model, monkeypatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/opt/tcmalloc.so")
    assert environment(large_model) == {}
