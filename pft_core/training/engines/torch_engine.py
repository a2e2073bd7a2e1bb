"""The engine in plain torch: the reference for every other one."""

import torch
import torch.distributed as dist
from torch import Tensor

from pft_core.encoding import BranchedBatch
from pft_core.scoring import BranchScorer
from pft_core.training.engines.engine import AdamWEngine, clip_gradients
from pft_core.training.engines.settings import EngineSettings, OptimizerSettings
from pft_core.training.ranks import num_ranks


class TorchEngine(AdamWEngine):
    """Plain torch: weights on every rank, gradients summed by one all-reduce at the step."""

    def __init__(
        self, scorer: BranchScorer, settings: EngineSettings, optimizer: OptimizerSettings, *, device: torch.device
    ):
        super().__init__(scorer, settings, optimizer, device=device)
        if num_ranks() > 1:
            for weight in self.trained.values():
                dist.broadcast(weight.data, src=0)

    def __call__(self, batch: BranchedBatch) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.optimizer.precision == "bf16"):
            logps: Tensor = self.scorer(batch)
        return logps

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add a micro-batch's gradients. is_last: whether the step's gradients are then complete."""
        self._watch(loss)
        loss.backward()

    def _update(self) -> float:
        self._sum_gradients()
        norm = clip_gradients(self.trained.values(), self.optimizer.max_grad_norm)
        self.adamw.step()
        self.adamw.zero_grad()
        return norm

    def _sum_gradients(self) -> None:
        gradients = [w.grad if w.grad is not None else torch.zeros_like(w) for w in self.trained.values()]
        if num_ranks() > 1:
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            parts = flat.split([g.numel() for g in gradients])
            gradients = [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
        for weight, gradient in zip(self.trained.values(), gradients, strict=True):
            weight.grad = gradient

    def _partitions(self) -> list[Tensor]:
        return list(self.trained.values())

    def _publish(self) -> None:
        pass
