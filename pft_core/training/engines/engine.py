"""The Engine protocol, and what its implementations share.

A loss passed to `backward` is the share of one rank and one bin, already divided by whole-step denominators; the update
uses the *sum* over bins and ranks. Only engines scale gradients.

Trained weights are always float32, so that AdamW and sums over ranks lose no bits: `precision="bf16"` runs the forward
under autocast. This rule holds for both engines and all ZeRO stages, for LoRA (whose frozen base may be bfloat16) and
for full fine-tuning.
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
    """Raised if a loss or a gradient is infinite or NaN, before its update changes a weight. example_ids: the examples
    at fault, if known."""

    def __init__(self, message: str, example_ids: Sequence[str] = ()):
        super().__init__(message)
        self.example_ids = tuple(example_ids)


class Engine(Protocol):
    """The interface that the training loop needs. All ranks must call every method, in the same order."""

    scorer: BranchScorer

    def __call__(self, batch: BranchedBatch) -> Tensor:
        """Return the log-probabilities [R] of a batch's branches."""

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of this rank's share of the loss. is_last: whether this is the last bin of an update."""

    def step(self, lr: float) -> float:
        """Update the weights once and return the global gradient norm before clipping. Raises NonFiniteError before any
        weight changes."""

    def save(self, folder: Path) -> None:
        """Write this rank's share of the trained weights and the optimizer state."""

    def load(self, folder: Path) -> None:
        """Load what `save` wrote at the same world size. Raises UserError if it belongs to another model or engine."""

    def gathered_state(self) -> dict[str, Tensor]:
        """Return the full trained weights on the CPU by their names in `scorer.model`; {} on ranks other than 0."""


class AdamWEngine(ABC):
    """The base of both engines: AdamW with torch's defaults, the check for finite losses, and one rank's files."""

    def __init__(
        self, scorer: BranchScorer, settings: EngineSettings, optimizer: OptimizerSettings, *, device: torch.device
    ):
        if device.index is not None:
            # Collectives of Python objects use the current device, which is the first one by default.
            torch.cuda.set_device(device)
        self.scorer = scorer.to(device).train()
        self.settings = settings
        self.optimizer = optimizer
        self.device = device
        self.trained = {n.removeprefix("model."): p for n, p in scorer.named_parameters() if p.requires_grad}
        assert self.trained, "nothing to train: every weight is frozen"
        low = [n for n, p in self.trained.items() if p.dtype != torch.float32]
        assert not low, f"trained weights must be float32 (load the base with precision='fp32'): {low[:3]}"
        # Each step sets the learning rate.
        self.adamw = torch.optim.AdamW(self.trained.values(), lr=0.0, weight_decay=optimizer.weight_decay)
        self._losses_finite = torch.ones((), device=device)

    def step(self, lr: float) -> float:
        """Update the weights once, if all losses since the last update are finite; see Engine.step."""
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
        """Copy the loaded partitions into the model's weights."""

    def _watch(self, loss: Tensor) -> None:
        # Kept on the device: reading it here would wait for the GPU at every bin.
        self._losses_finite = self._losses_finite * torch.isfinite(loss.detach())

    def _require_finite_losses(self) -> None:
        # All ranks must stop together, or the others would wait forever in the next collective.
        if num_ranks() > 1:
            dist.all_reduce(self._losses_finite, op=dist.ReduceOp.MIN)
        if not self._losses_finite.item():
            raise NonFiniteError("the loss is not finite; this update changed no weight")

    def save(self, folder: Path) -> None:
        """Write this rank's weights and AdamW state as one safetensors file."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for i, weights in enumerate(self._partitions()):
            tensors[f"{i}.weights"] = weights
            tensors |= {f"{i}.{key}": value for key, value in self.adamw.state.get(weights, {}).items()}
        # Partitions may be views of one buffer, which safetensors refuses, so clone them.
        save_file({k: v.detach().cpu().clone() for k, v in tensors.items()}, folder / STATE_NAME)

    def load(self, folder: Path) -> None:
        """Load what `save` wrote. Raises UserError if the shapes differ from this engine's."""
        saved = load_file(folder / STATE_NAME)
        partitions = self._partitions()
        saved_shapes = [saved[key].shape for i in range(len(saved)) if (key := f"{i}.weights") in saved]
        if saved_shapes != [p.shape for p in partitions]:
            raise UserError(
                f"{folder / STATE_NAME}: written for another model, adapter or engine; start over with --fresh"
            )
        for i, weights in enumerate(partitions):
            weights.data.copy_(saved.pop(f"{i}.weights"))
            state = {key.partition(".")[2]: value for key, value in saved.items() if key.startswith(f"{i}.")}
            # AdamW keeps its step counter on the CPU.
            self.adamw.state[weights] = {k: v if v.dim() == 0 else v.to(weights.device) for k, v in state.items()}
        self._publish()

    def gathered_state(self) -> dict[str, Tensor]:
        """Return the full trained weights on rank 0, and {} on other ranks."""
        if this_rank() != 0:
            return {}
        return {name: weight.detach().cpu().clone() for name, weight in self.trained.items()}


def clip_gradients(weights: Iterable[Tensor], max_norm: float) -> float:
    """Scale gradients to a total norm of at most `max_norm`; return the norm before. Raises NonFiniteError if it is not
    finite."""
    norm = float(torch.nn.utils.clip_grad_norm_(weights, max_norm))
    if not math.isfinite(norm):
        raise NonFiniteError("a gradient is not finite; this update changed no weight")
    return norm
