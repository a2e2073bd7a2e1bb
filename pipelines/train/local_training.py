"""Train in this process without Ray Train, as the warm trial actors of a search do."""

from collections.abc import Callable
from pathlib import Path

import torch

from pft_core.policies import ModelRef
from pft_core.training import FitResult, LocalContext, MemoryFallback, MemoryUse, OutOfMemoryError, going_on
from pipelines.console import console
from pipelines.progress import stage
from pipelines.train.fitting import build_and_fit
from pipelines.train.publish import publish_policy
from pipelines.train.resolved_run import ResolvedRun, RunLayers


def train_here(
    run: ResolvedRun,
    layers: RunLayers,
    folder: Path,
    *,
    log: Callable[[int, dict[str, float]], None],
    device: torch.device,
) -> tuple[ModelRef, int]:
    """Train, or continue from the folder's newest checkpoint, and publish the policy there.

    Returns the model reference, and the number of steps of the whole run.
    """
    context = LocalContext(folder / "checkpoints", device=device, log=log, say=say, stage=stage)
    result = fit_within_memory(run, layers, context)
    saved = context.latest_checkpoint()
    assert saved is not None, "a run ends with a checkpoint"
    publish_policy(run, layers.style, saved, folder)
    return ModelRef.load(folder), result.steps


def say(text: str) -> None:
    """Print a message of the training."""
    console.print(text, highlight=False, soft_wrap=True)


def fit_within_memory(run: ResolvedRun, layers: RunLayers, context: LocalContext) -> FitResult:
    """Train; if memory runs out, continue from the newest checkpoint with the next memory fallback.

    Raises OutOfMemoryError if no fallback is left.
    """
    memory_fallback = MemoryFallback.PLANNED
    while True:
        uses: list[MemoryUse] = []
        try:
            return build_and_fit(run, layers, context, memory_fallback=memory_fallback, report=uses.append)
        except OutOfMemoryError:
            less = uses[-1].next(run.config.train) if uses else None
            if less is None:
                raise
            console.print(going_on(uses[-1], less), style="yellow", soft_wrap=True)
            memory_fallback = less
