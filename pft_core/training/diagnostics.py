"""The cosine between the gradients of the two sides: how much they conflict in a step."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pft_core.data import SIDES
from pft_core.objectives import Objective
from pft_core.training.engines import TorchEngine
from pft_core.training.planning import Update
from pft_core.training.ranks import num_ranks


def gradient_cosine(updates: Sequence[Update], *, objective: Objective, engine: TorchEngine) -> float | None:
    """Return the cosine between the two sides' gradients with respect to the trained weights, or None if a side has no
    gradient. Dropout is off, and no gradient is kept. Every rank must call it, at the same step.
    """
    weights = list(engine.trained.values())
    gradients_2W = torch.zeros(len(SIDES), sum(w.numel() for w in weights), device=engine.device)
    engine.scorer.eval()
    for update in updates:
        for batch, denominators_K in zip(update.batches, update.denominators, strict=True):
            on_device = batch.to(engine.device)
            logps_R = engine(on_device)
            for side in SIDES:
                # The other side's branches are detached: they count in the loss but get no gradient.
                one_sided_R = torch.where(on_device.branch_side == side, logps_R, logps_R.detach())
                loss = objective.loss(objective.sums(one_sided_R, on_device), denominators_K)
                gradients_2W[side] += flat_gradient(loss, weights)
    engine.scorer.train()
    if num_ranks() > 1:
        dist.all_reduce(gradients_2W)
    first, second = gradients_2W
    norms = first.norm() * second.norm()
    return float(first @ second / norms) if norms > 0 else None


def flat_gradient(loss: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return the gradient of a loss with respect to the weights as one vector; keeps the graph for another backward."""
    parts = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(w).flatten() if g is None else g.flatten() for g, w in zip(parts, weights, strict=True)]
    )
