"""The benchmarks run and count correctly; their measurements are not judged here."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks.gpu import (
    TINY,
    Work,
    attended_keys,
    needed_flops,
    random_model,
    scaled,
    step_of,
    warm_up,
    works_of,
)
from benchmarks.prepare import FEW, MANY, slopes
from benchmarks.shapes import shape
from pft_core.scoring.scorer import BranchScorer
from pft_core.training.engines.settings import EngineSettings, OptimizerSettings
from pft_core.training.engines.torch_engine import TorchEngine
from tests.builders import tree

NOT_NEEDED_ON_A_GPU_MACHINE = ("ray", "deepspeed", "mlflow", "trl", "datasets", "pyarrow")


def test_the_gpu_benchmark_runs_dry_on_cpu_without_ray_and_prints_one_json_object() -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({NOT_NEEDED_ON_A_GPU_MACHINE!r}))"
    options = ["--dry-run", "--json", "--shapes", "vcd", "dpo1500", "--checkpointing", "on"]
    code = f"{blocked}; sys.argv = ['gpu', *{options!r}]; from benchmarks.gpu import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert all(found["equal"] for name, found in result["equality"].items() if not name.endswith("flex"))
    # One model, LoRA and full, two shapes, four variants.
    assert len(result["rows"]) == 2 * 2 * 4
    for row in result["rows"]:
        assert row["measured"] == "yes" or (row["variant"] == "flex" and "backward" in row["measured"])


def test_a_variant_that_does_not_fit_is_reported_and_the_next_one_runs() -> None:
    cpu = torch.device("cpu")
    model = random_model(TINY, training="lora", dtype=torch.bfloat16, device=cpu)
    engine = TorchEngine(BranchScorer(model), EngineSettings(), OptimizerSettings(), device=cpu)
    work = works_of(engine, scaled(shape("vcd"), 16), vocabulary=TINY.vocab_size, tokens=0)["split"]

    def too_large() -> None:
        step_of(engine, work)()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GB")

    failed, peaks = warm_up({"large": too_large, "small": step_of(engine, work)}, engine)
    assert failed == {"large": "out of memory"}
    assert peaks == {"small": "not measured: no CUDA device"}


def test_required_operations_count_only_real_tokens() -> None:
    # Prefix 3, branches of 2 tokens, the second of each a label: shared 7 tokens, separate 10.
    pair = tree("p", [[5, 6, 7, 8], [5, 6, 7, 9]], [[10], [11]])
    # Causal: prefix 1 + 2 + 3 = 6, each branch 4 + 5 = 9. A label's predictor sees prefix and one token: 4 keys each.
    assert attended_keys(pair, shares_prefix=True) == (6 + 9 + 9, 8)
    assert attended_keys(pair, shares_prefix=False) == (15 + 15, 8)
    # TINY: 2 layers, width 64, key-value width 32, MLP 128, vocabulary 512.
    kv, other, head = 2 * 64 * 32, 2 * 64 * 64 + 3 * 64 * 128, 64 * 512
    products = (kv + other) * 7 + kv * 7 + other * 2 + head * 2
    work = Work([([pair], np.zeros(2))], True, lambda *_: None)  # type: ignore[arg-type,return-value,list-item]
    assert needed_flops(TINY, work, training="lora") == 2 * 2 * products + 12 * 64 * (24 + 8)
    assert needed_flops(TINY, work, training="full") == pytest.approx(2 * 3 * products + 12 * 64 * (24 + 8))


def test_a_rate_without_start_up_is_the_cost_of_more_rows() -> None:
    # 7 s of start-up, then 2,000 rows per second
    assert slopes([7 + FEW / 2000], [7 + MANY / 2000]) == [2000]
