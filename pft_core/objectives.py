"""Training objectives: small functions on branch log-probabilities.

An objective declares its denominators from the label counts of a whole optimizer step, before any forward, and
returns *sums*; the loop divides once. So nothing is an average of averages, and how a step is cut into bins or ranks
never changes the update.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pft_core.batching import BranchedBatch
from pft_core.errors import UserError, did_you_mean
from pft_core.preferences import SIDES

# R branches of a batch, E examples of a step, K loss terms.


@dataclass(frozen=True)
class Objective:
    """A loss `sum_k weights[k] * sums[k] / denominators[k]` over K named terms.

    phases: the sides each update of a step trains on, one tuple per update. Two phases are the asynchronous update:
    the second side's gradient is taken at the parameters that the first side has moved.
    denominators(num_labels [E, 2]) -> [K]; sums(logps [R], batch) -> [K].
    """

    terms: tuple[str, ...]
    weights: tuple[float, ...]
    phases: tuple[tuple[int, ...], ...]
    denominators: Callable[[NDArray[np.int64]], NDArray[np.float64]]
    sums: Callable[[Tensor, BranchedBatch], Tensor]

    @property
    def trained_sides(self) -> tuple[int, ...]:
        """The sides that any of the updates trains on, in order."""
        return tuple(sorted({side for phase in self.phases for side in phase}))

    def loss(self, sums_K: Tensor, denominators_K: NDArray[np.float64]) -> Tensor:
        """Divide once; a term without labels in this step contributes nothing."""
        scale = [w / d if d > 0 else 0.0 for w, d in zip(self.weights, denominators_K, strict=True)]
        return (sums_K * torch.tensor(scale, dtype=sums_K.dtype, device=sums_K.device)).sum()


def label_tokens_per_side(num_labels_E2: NDArray[np.int64]) -> NDArray[np.float64]:
    return num_labels_E2.sum(axis=0).astype(np.float64)


def label_tokens(num_labels_E2: NDArray[np.int64]) -> NDArray[np.float64]:
    return num_labels_E2.sum(keepdims=True).reshape(1).astype(np.float64)


def nll_per_side(logps_R: Tensor, batch: BranchedBatch) -> Tensor:
    """Return the negative log-likelihood summed per side [2]."""
    return torch.zeros(len(SIDES), dtype=logps_R.dtype, device=logps_R.device).index_add(0, batch.branch_side, -logps_R)


def nll(logps_R: Tensor, batch: BranchedBatch) -> Tensor:
    """Return the negative log-likelihood summed over all branches [1]."""
    return -logps_R.sum(dim=0, keepdim=True)


def paired_nll(*, alpha: float, beta: float, update: str = "synchronous") -> Objective:
    """Preference-paired fine-tuning: `alpha * CE(y+ | x, p+) + beta * CE(y- | x, p-)`.

    Synchronous: one update from both sides (PFT, App. D, eq. 9-11). Asynchronous: an update for the first side with
    weight alpha, then one for the second with weight beta at the moved parameters (eq. 7-8).
    """
    phases = (SIDES,) if update == "synchronous" else tuple((side,) for side in SIDES)
    return Objective(("loss_first", "loss_second"), (alpha, beta), phases, label_tokens_per_side, nll_per_side)


def one_sided_nll(*, side: int) -> Objective:
    """Supervised fine-tuning on one pole of every axis: the other pole's branch is never run."""
    weights = (1.0, 0.0) if side == 0 else (0.0, 1.0)
    return Objective(("loss_first", "loss_second"), weights, ((side,),), label_tokens_per_side, nll_per_side)


def mixed_nll() -> Objective:
    """Supervised fine-tuning on both poles' demonstrations as one pile: a mean over all label tokens."""
    return Objective(("loss",), (1.0,), (SIDES,), label_tokens, nll)


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "pft": lambda alpha, beta, update: paired_nll(alpha=alpha, beta=beta, update=update),
    "one_sided:first": lambda **_: one_sided_nll(side=0),
    "one_sided:second": lambda **_: one_sided_nll(side=1),
    "mixed": lambda **_: mixed_nll(),
}


def build_objective(name: str, *, alpha: float = 1.0, beta: float = 1.0, update: str = "synchronous") -> Objective:
    """Look an objective up by its config name. Raises UserError for an unknown one."""
    if name not in OBJECTIVES:
        raise UserError(f"train.objective={name!r} does not exist.{did_you_mean(name, OBJECTIVES)}")
    return OBJECTIVES[name](alpha=alpha, beta=beta, update=update)
