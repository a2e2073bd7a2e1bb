from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pipelines.config import load_config, precision
from pipelines.config.precision import cpu_has_bf16, with_precision
from pipelines.jobs import fair_threads


@pytest.fixture(autouse=True)
def unread(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Forget what this machine's CPU has, before and after."""
    cpu_has_bf16.cache_clear()
    precision._say.cache_clear()
    yield
    cpu_has_bf16.cache_clear()
    precision._say.cache_clear()


def cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    (file := tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: A\nflags\t\t: fpu sse {flags}\n")
    monkeypatch.setattr(precision, "CPU_INFO", file)
    monkeypatch.setattr(precision.platform, "system", lambda: "Linux")


@pytest.mark.parametrize(("flags", "expected"), [("avx2", "fp32"), ("avx512_bf16", "bf16"), ("amx_bf16", "bf16")])
def test_auto_is_what_the_cpu_has_instructions_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: str, expected: str
) -> None:
    cpu(tmp_path, monkeypatch, flags)
    config = load_config(
        "vcd_qwen2.5-3b_lora", ["train.precision=auto", "scaling.use_gpu=false", "scaling.num_workers=1"]
    )
    assert with_precision(config).train.precision == expected
    with_precision(config)
    assert capsys.readouterr().err.count(f"train.precision: {expected}, because this CPU has") == 1


def test_a_gpu_takes_bf16_and_a_given_precision_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu(tmp_path, monkeypatch, "avx2")
    config = load_config("vcd_qwen2.5-3b_lora", ["train.precision=auto", "scaling.use_gpu=true"])
    assert with_precision(config).train.precision == "bf16"
    forced = load_config("quickstart", ["train.precision=bf16"])
    assert with_precision(forced).train.precision == "bf16"
    said = capsys.readouterr().err
    assert "no instructions for it: a step takes about 40 times as long" in said


@pytest.mark.parametrize(
    ("nodes", "address", "num_workers", "expected"),
    [([6], "", 1, 2), ([6], "", 2, 1), ([16, 8], "head:6379", 1, 8), ([16, 16], "head:6379", 4, 8), ([4], "h", 9, 1)],
)
def test_auto_threads_are_the_cores_of_a_node_over_its_workers(
    monkeypatch: pytest.MonkeyPatch, nodes: list[int], address: str, num_workers: int, expected: int
) -> None:
    # A Ray of this machine's own counts 6 logical CPUs for its 2 cores.
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": n}} for n in nodes])
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    from pipelines.jobs import capacity

    monkeypatch.setattr(capacity, "os", SimpleNamespace(environ={"RAY_ADDRESS": address}, cpu_count=lambda: 2))
    assert fair_threads(num_workers) == expected
