"""Engines: who runs the scorer, sums gradients over ranks and bins, and updates the weights.

One contract, two engines. A loss handed to `backward` is one rank's and one bin's share, divided by whole-step
denominators already; the update uses the *sum* over bins and ranks. Gradient scaling lives here and nowhere else.

Trained weights are always float32, so that AdamW and the sums over ranks lose no bits: `precision="bf16"` runs the
forward under autocast. That is one rule for both engines and all ZeRO stages, for LoRA (where the frozen base may be
bfloat16) and for full fine-tuning.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from pft_core.encoding import BranchedBatch
from pft_core.errors import UserError
from pft_core.scoring import BranchScorer
from pft_core.training.engines.settings import EngineSettings, OptimizerSettings
from pft_core.training.ranks import num_ranks, this_rank

STATE_NAME = "engine.safetensors"


class NonFiniteError(RuntimeError):
    """A loss or a gradient is infinite or not a number; no weight has changed. example_ids: where it is known whose."""

    def __init__(self, message: str, example_ids: Sequence[str] = ()):
        super().__init__(message)
        self.example_ids = tuple(example_ids)


class Engine(Protocol):
    """What the training loop needs; every method is called by all ranks, in the same order."""

    scorer: BranchScorer

    def __call__(self, batch: BranchedBatch) -> Tensor:
        """Return the log-probabilities [R] of a batch's branches."""

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of this rank's share of the loss; `is_last` marks the last bin of an update."""

    def step(self, lr: float) -> float:
        """Update once; return the global gradient norm before clipping. Raises NonFiniteError before any change."""

    def save(self, folder: Path) -> None:
        """Write this rank's share of trained weights and optimizer state."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote at the same world size. Raises UserError if it belongs to another model or engine."""

    def gathered_state(self) -> dict[str, Tensor]:
        """Return the trained weights, whole and on the CPU, by their names in `scorer.model`; {} except on rank 0."""


class AdamWEngine(ABC):
    """What both engines share: AdamW with torch's defaults, the check of losses, one rank's files."""

    def __init__(
        self, scorer: BranchScorer, settings: EngineSettings, optimizer: OptimizerSettings, *, device: torch.device
    ):
        if device.index is not None:
            # Collectives of Python objects go through the current device, which is the first one by default.
            torch.cuda.set_device(device)
        self.scorer = scorer.to(device).train()
        self.settings = settings
        self.optimizer = optimizer
        self.device = device
        self.trained = {n.removeprefix("model."): p for n, p in scorer.named_parameters() if p.requires_grad}
        assert self.trained, "nothing to train: every weight is frozen"
        low = [n for n, p in self.trained.items() if p.dtype != torch.float32]
        assert not low, f"trained weights must be float32 (load the base with precision='fp32'): {low[:3]}"
        # The learning rate comes with every step.
        self.adamw = torch.optim.AdamW(self.trained.values(), lr=0.0, weight_decay=optimizer.weight_decay)
        self._losses_finite = torch.ones((), device=device)

    def step(self, lr: float) -> float:
        self._require_finite_losses()
        for group in self.adamw.param_groups:
            group["lr"] = lr
        return self._update()

    @abstractmethod
    def _update(self) -> float:
        """Sum, check, clip and step; return the norm before clipping."""

    @abstractmethod
    def _partitions(self) -> list[Tensor]:
        """Return the float32 tensors that this rank's AdamW updates."""

    @abstractmethod
    def _publish(self) -> None:
        """Make the model's weights follow the partitions after these were loaded."""

    def _watch(self, loss: Tensor) -> None:
        # Kept on the device: reading it here would wait for every bin.
        self._losses_finite = self._losses_finite * torch.isfinite(loss.detach())

    def _require_finite_losses(self) -> None:
        # All ranks must stop together, or the others would wait in the next collective.
        if num_ranks() > 1:
            dist.all_reduce(self._losses_finite, op=dist.ReduceOp.MIN)
        if not self._losses_finite.item():
            raise NonFiniteError("the loss is infinite or not a number; no weight has changed")

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for i, weights in enumerate(self._partitions()):
            tensors[f"{i}.weights"] = weights
            tensors |= {f"{i}.{key}": value for key, value in self.adamw.state.get(weights, {}).items()}
        # Partitions may be views of one buffer, which the format refuses: clone them.
        save_file({k: v.detach().cpu().clone() for k, v in tensors.items()}, folder / STATE_NAME)

    def load(self, folder: Path) -> None:
        saved = load_file(folder / STATE_NAME)
        partitions = self._partitions()
        found = [saved[key].shape for i in range(len(saved)) if (key := f"{i}.weights") in saved]
        if found != [p.shape for p in partitions]:
            raise UserError(f"{folder / STATE_NAME}: written for another model, adapter or engine; train with --fresh")
        for i, weights in enumerate(partitions):
            weights.data.copy_(saved.pop(f"{i}.weights"))
            state = {key.partition(".")[2]: value for key, value in saved.items() if key.startswith(f"{i}.")}
            # AdamW keeps its step counter on the CPU.
            self.adamw.state[weights] = {k: v if v.dim() == 0 else v.to(weights.device) for k, v in state.items()}
        self._publish()

    def gathered_state(self) -> dict[str, Tensor]:
        if this_rank() != 0:
            return {}
        return {name: weight.detach().cpu().clone() for name, weight in self.trained.items()}


def clip_gradients(weights: Iterable[Tensor], max_norm: float) -> float:
    """Scale gradients to a joint norm of at most `max_norm`; return the norm before. Raises NonFiniteError."""
    norm = float(torch.nn.utils.clip_grad_norm_(weights, max_norm))
    if not math.isfinite(norm):
        raise NonFiniteError("a gradient is infinite or not a number; no weight has changed")
    return norm
