"""The memory that a worker of a planned run needs, counted on the real model, against what is free here."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pft_core.policies import refuse_foreign_tokenizer, weight_files
from pft_core.scoring import BranchScorer
from pft_core.training import (
    ExampleStore,
    LocalContext,
    LoopSettings,
    MemoryFallback,
    MemoryUse,
    free_bytes,
    loading_memory_errors,
)
from pipelines.config import RunConfig
from pipelines.train.fitting import build_model, plan_and_save_memory
from pipelines.train.resolved_run import ResolvedRun

LAUNCHED = "LOCAL_WORLD_SIZE"  # the processes that share this machine's memory


@dataclass(frozen=True)
class CountedMemory:
    """Bytes of one worker: its weights, what training needs besides, and what is free for that."""

    weights: int
    use: MemoryUse

    @property
    def fits(self) -> bool:
        """Whether the needed bytes are free."""
        return self.use.needed <= self.use.free


def why_not_counted(config: RunConfig) -> str | None:
    """Return why the memory cannot be counted on this machine; None if it can."""
    if config.scaling.use_gpu and not torch.cuda.is_available():
        return "scaling.use_gpu=true, and this machine has no GPU"
    files = weight_files(str(config.model))
    if not files:
        return f"the weights of {config.model} are not on this machine"
    bytes_each = 2 if config.lora and config.train.precision == "bf16" else 4
    size, free = sum(weight_bytes(file, bytes_each) for file in files), free_bytes(device_of(config))
    if size > free:
        return f"the weights of {config.model} take {size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free here"
    return None


def weight_bytes(file: Path, bytes_each: int) -> int:
    """Return the bytes of a file's weights in memory, by the shapes in its header; its size if it has none."""
    if file.suffix != ".safetensors":
        return file.stat().st_size
    with file.open("rb") as content:
        header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(bytes_each * torch.Size(shape).numel() for shape in shapes)


def load_scorer(run: ResolvedRun) -> BranchScorer:
    """Load the model as a worker does. Raises UserError if it does not fit or is not the tokenizer's."""
    device = device_of(run.config)
    with loading_memory_errors(device):
        model = build_model(run.config, device)
        refuse_foreign_tokenizer(model, run.tokenizer.loaded)
        return BranchScorer(model, backend=run.config.train.attention_backend)


def count_memory(run: ResolvedRun, scorer: BranchScorer, settings: LoopSettings, store: ExampleStore) -> CountedMemory:
    """Count what a worker needs; if it does not fit, with activations recomputed, as the run would decide."""
    config, device = run.config, device_of(run.config)
    weights = sum(weight.numel() * weight.element_size() for weight in scorer.parameters())
    sharing = 1 if config.scaling.use_gpu else config.scaling.num_workers
    context = LocalContext(Path(), device=device)
    context.world_size = config.scaling.num_workers

    def counted(memory_fallback: MemoryFallback) -> CountedMemory:
        with launched(sharing), loading_memory_errors(device):
            _, use = plan_and_save_memory(scorer, settings, store, memory_fallback, context=context)
        # Only one of the workers that will share the memory holds its weights now.
        return CountedMemory(weights, replace(use, free=use.free - weights * (sharing - 1) / sharing))

    memory = counted(MemoryFallback.PLANNED)
    can_recompute = config.train.gradient_checkpointing == "auto" and not memory.use.memory_fallback
    return memory if memory.fits or not can_recompute else counted(MemoryFallback.RECOMPUTED)


def device_of(config: RunConfig) -> torch.device:
    return torch.device("cuda" if config.scaling.use_gpu else "cpu")


@contextmanager
def launched(num_processes: int) -> Iterator[None]:
    """Count free memory as one of so many processes on this machine."""
    before = os.environ.get(LAUNCHED)
    os.environ[LAUNCHED] = str(num_processes)
    try:
        yield
    finally:
        if before is None:
            del os.environ[LAUNCHED]
        else:
            os.environ[LAUNCHED] = before
