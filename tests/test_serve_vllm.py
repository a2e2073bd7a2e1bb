"""The vLLM engine against the transformers engine and BranchScorer on one tiny model, in float32."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("vllm")

from pft_core.encoding import BranchedExample
from pft_core.errors import UserError
from pft_core.evaluation.answers import score_branches
from pft_core.model import LoraSettings, add_lora, load_base, save_adapter, with_adapter
from pft_core.scoring import BranchScorer
from pipelines.serve.engine import LoadedAdapter, Sampling, Steering, Step
from pipelines.serve.transformers_engine import TransformersEngine, TransformersSettings
from pipelines.serve.vllm_engine import VllmEngine, VllmSettings, following
from tests.builders import random_trees, tree

pytestmark = pytest.mark.vllm

CPU = torch.device("cpu")
EOS = 2
# Float32 sums in another order: 2 layers of 64 differ by 2e-6, measured.
ROUNDING = 1e-3
GREEDY = Sampling(max_tokens=12, temperature=0, logprobs=3)
PROMPT = [int(i) for i in np.random.default_rng(7).integers(3, 600, 100)]

T = TypeVar("T")


@dataclass(frozen=True)
class Served:
    """The engine under test, on a loop that outlives the tests, and the model that it runs."""

    engine: VllmEngine
    loop: asyncio.AbstractEventLoop
    model: Path
    adapters: list[LoadedAdapter]

    def run(self, work: Awaitable[T]) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(work, timeout=60)

        return self.loop.run_until_complete(bounded())


@pytest.fixture(scope="module")
def model(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 with heads of 32: vLLM's CPU attention takes no smaller ones."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("heads_of_32") / "model"
    shutil.copytree(tiny_qwen2, folder)
    config = Qwen2Config.from_pretrained(tiny_qwen2, hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def write_adapter(model: Path, folder: Path, seed: int, *, rank: int = 4) -> LoadedAdapter:
    """An adapter as if trained: B is not zero."""
    base = load_base(str(model), precision="fp32", gradient_checkpointing=False, device=CPU)
    policy = add_lora(base, LoraSettings(rank, 2 * rank, 0.0, ["q_proj", "v_proj", "down_proj"]), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    trained = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    weights = {name: torch.randn(weight.shape, generator=generator) * 0.2 for name, weight in trained.items()}
    save_adapter(policy, weights, folder)
    return LoadedAdapter(f"{folder.name}@{seed:012d}", folder)


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("adapters")
    adapters = [write_adapter(model, root / f"a{seed}", seed) for seed in range(3)]
    loop = asyncio.new_event_loop()
    engine = VllmEngine(settings(model))
    yield Served(engine, loop, model, adapters)
    loop.run_until_complete(engine.close())
    loop.close()


def settings(model: Path) -> VllmSettings:
    """Two slots, so that three adapters take turns."""
    return VllmSettings(
        model=str(model),
        precision="fp32",
        max_length=512,
        max_batch=8,
        max_loaded_adapters=2,
        max_adapter_rank=8,
        gpu_memory=0.5,
        cpu_cache_gib=1,
        threads=1,
        enable_lora=True,
    )
