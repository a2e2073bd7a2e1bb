"""Training objectives: named terms, each a sum over branches and a denominator that is known before any forward.

The loop divides once, so nothing is an average of averages, and splitting a step over bins or ranks never changes the
update.
"""

from __future__ import annotations  # only types name torch, so a driver builds objectives without importing it

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pft_core.data import SIDES
from pft_core.encoding import VIEWS, LabelCounts, View

if TYPE_CHECKING:
    from torch import Tensor

    from pft_core.encoding import BranchedBatch

SIDE_NAMES = ("first", "second")  # in the names of metrics

# R branches of a batch, K loss terms.


@dataclass(frozen=True)
class LossTerm:
    """One term of a loss. side: the side whose branches it sums, None for both. A term of weight 0 is only reported."""

    name: str
    weight: float
    side: int | None = None


@dataclass(frozen=True)
class Objective:
    """A loss `sum_k weight[k] * sums[k] / denominators[k]` over K terms.

    phases: the sides that each update of a step trains on, one tuple per update. Two phases are the asynchronous
    update: the second side's gradient is computed after the first side's update.
    denominators(counts of the step) -> [K]; sums(logps [R], batch) -> [K].
    view: the branches that the objective needs from a record.
    uses_reference: whether it reads `BranchedBatch.reference_R`.
    splits_pairs: whether each side of a pair is an example of its own (see Demonstrations).
    """

    terms: tuple[LossTerm, ...]
    phases: tuple[tuple[int, ...], ...]
    denominators: Callable[[LabelCounts], NDArray[np.float64]]
    sums: Callable[[Tensor, BranchedBatch], Tensor]
    view: View = "pft"
    uses_reference: bool = False
    splits_pairs: bool = False

    @property
    def examples_per_pair(self) -> int:
        """The number of training examples that one pair gives."""
        return len(SIDES) if self.splits_pairs else 1

    @property
    def num_branches(self) -> int:
        """The most branches of a pair that run at once, which every micro-batch must have room for."""
        branch_sides = [side for side, _ in VIEWS[self.view]]
        return max(sum(side in phase for side in branch_sides) for phase in self.phases)

    @property
    def trained_sides(self) -> tuple[int, ...]:
        """The sides that at least one update trains on, in order."""
        return tuple(sorted({side for phase in self.phases for side in phase}))

    @property
    def reported_sides(self) -> tuple[int, ...]:
        """The sides that validation reports, whether or not they are trained."""
        return tuple(sorted({*self.trained_sides, *(term.side for term in self.terms if term.side is not None)}))

    def loss(self, sums_K: Tensor, denominators_K: NDArray[np.float64]) -> Tensor:
        """Return the weighted sum of the terms, each divided once; a term without labels in this step adds nothing."""
        scale = [t.weight / d if d > 0 else 0.0 for t, d in zip(self.terms, denominators_K, strict=True)]
        kept = [k for k, factor in enumerate(scale) if factor]
        weighed = sums_K[kept] * sums_K.new_tensor([scale[k] for k in kept])
        # Even if no term is left, the loss must depend on the weights, or the engine's backward fails.
        return weighed.sum() if kept else sums_K.sum() * 0.0


def add_terms(
    objective: Objective,
    terms: tuple[LossTerm, ...],
    denominators: Callable[[LabelCounts], NDArray[np.float64]],
    sums: Callable[[Tensor, BranchedBatch], Tensor],
) -> Objective:
    """Return the objective with these terms appended."""
    return replace(
        objective,
        terms=(*objective.terms, *terms),
        denominators=lambda counts: np.concatenate([objective.denominators(counts), denominators(counts)]),
        sums=lambda logps_R, batch: joined([objective.sums(logps_R, batch), sums(logps_R, batch)]),
    )


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate vectors."""
    import torch

    return torch.cat(list(parts))


def per_side(values_R: Tensor, sides_R: Tensor) -> Tensor:
    """Sum values by side [2]."""
    return values_R.new_zeros(len(SIDES)).index_add(0, sides_R, values_R)
