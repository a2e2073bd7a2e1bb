from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import ray

from pipelines.config import load_config, precision
from pipelines.config.precision import cpu_has_bf16, with_precision
from pipelines.evaluate import evaluation_request
from pipelines.evaluate.evaluate_config import EvaluateConfig
from pipelines.jobs import fair_threads


@pytest.fixture(autouse=True)
def unread(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Forget what this machine's CPU has, before and after."""
    cached = (cpu_has_bf16, precision._say, precision.warn_if_bf16_is_slow)
    for each in cached:
        each.cache_clear()
    yield
    for each in cached:
        each.cache_clear()


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
    assert "train.precision=bf16, but this CPU has no instructions for it" in said


@pytest.mark.parametrize(
    ("flags", "use_gpu", "asked", "is_slow"),
    [
        ("avx2", False, "bf16", True),
        ("avx2", False, None, False),
        ("avx2", True, "bf16", False),
        ("avx512_bf16", False, "bf16", False),
    ],
)
def test_an_evaluation_in_bf16_says_if_the_cpu_has_no_instructions_for_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    use_gpu: bool,
    asked: Literal["bf16"] | None,
    is_slow: bool,
) -> None:
    cpu(tmp_path, monkeypatch, flags)
    evaluation_request.with_precision(EvaluateConfig(model="m", data="d", output="o", use_gpu=use_gpu, precision=asked))
    said = capsys.readouterr().err
    assert said.startswith("precision=bf16, but this CPU has no instructions for it") == is_slow
    assert bool(said) == is_slow


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
