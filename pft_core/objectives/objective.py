"""What a training objective is: named terms, each a sum over branches and a denominator known before any forward.

The loop divides once. So nothing is an average of averages, and how a step is cut into bins or ranks never changes the
update.
"""

from __future__ import annotations  # types alone name torch: a driver builds objectives without it

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
    """One part of a loss. side: the side whose branches it is made of, None for both; a weight of 0 only reports."""

    name: str
    weight: float
    side: int | None = None


@dataclass(frozen=True)
class Objective:
    """A loss `sum_k weight[k] * sums[k] / denominators[k]` over K terms.

    phases: the sides each update of a step trains on, one tuple per update. Two phases are the asynchronous update:
    the second side's gradient is taken at the parameters that the first side has moved.
    denominators(counts of the step) -> [K]; sums(logps [R], batch) -> [K].
    view: the branches that it needs of a record; uses_reference: whether it reads `BranchedBatch.reference_R`.
    takes_pairs_apart: whether the two sides of a pair are examples of their own (see Demonstrations).
    """

    terms: tuple[LossTerm, ...]
    phases: tuple[tuple[int, ...], ...]
    denominators: Callable[[LabelCounts], NDArray[np.float64]]
    sums: Callable[[Tensor, BranchedBatch], Tensor]
    view: View = "pft"
    uses_reference: bool = False
    takes_pairs_apart: bool = False

    @property
    def examples_per_pair(self) -> int:
        """The number of examples that a pair becomes: one, or one for each side."""
        return len(SIDES) if self.takes_pairs_apart else 1

    @property
    def num_branches(self) -> int:
        """Branches of a pair that run at once: what the longest micro-batch has to hold."""
        asked = [side for side, _ in VIEWS[self.view]]
        return max(sum(side in phase for side in asked) for phase in self.phases)

    @property
    def trained_sides(self) -> tuple[int, ...]:
        """The sides that any of the updates trains on, in order."""
        return tuple(sorted({side for phase in self.phases for side in phase}))

    @property
    def reported_sides(self) -> tuple[int, ...]:
        """The sides that a validation tells of, trained on or not."""
        return tuple(sorted({*self.trained_sides, *(term.side for term in self.terms if term.side is not None)}))

    def loss(self, sums_K: Tensor, denominators_K: NDArray[np.float64]) -> Tensor:
        """Divide once; a term without labels in this step contributes nothing."""
        scale = [t.weight / d if d > 0 else 0.0 for t, d in zip(self.terms, denominators_K, strict=True)]
        kept = [k for k, factor in enumerate(scale) if factor]
        weighed = sums_K[kept] * sums_K.new_tensor([scale[k] for k in kept])
        # A step may leave no term, and its loss must still hang on the weights for the engine's backward.
        return weighed.sum() if kept else sums_K.sum() * 0.0


def add_terms(
    objective: Objective,
    terms: tuple[LossTerm, ...],
    denominators: Callable[[LabelCounts], NDArray[np.float64]],
    sums: Callable[[Tensor, BranchedBatch], Tensor],
) -> Objective:
    """Return the objective with more terms at its end."""
    return replace(
        objective,
        terms=(*objective.terms, *terms),
        denominators=lambda counts: np.concatenate([objective.denominators(counts), denominators(counts)]),
        sums=lambda logps_R, batch: joined([objective.sums(logps_R, batch), sums(logps_R, batch)]),
    )


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return vectors end to end."""
    import torch

    return torch.cat(list(parts))


def per_side(values_R: Tensor, sides_R: Tensor) -> Tensor:
    """Sum values by side [2]."""
    return values_R.new_zeros(len(SIDES)).index_add(0, sides_R, values_R)
