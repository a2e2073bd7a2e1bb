"""Metrics reported beside a loss with weight 0: how far the answers' log-probabilities have moved from a reference.

A preference loss can fall while the chosen and the rejected answer both lose probability (likelihood displacement):
the loss sees only the difference between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pft_core.encoding import LabelCounts
from pft_core.objectives.nll import side_terms
from pft_core.objectives.objective import Objective, add_terms, joined, per_side
from pft_core.objectives.preference import AnswerPairs, answer_pairs, pairs_per_side

if TYPE_CHECKING:
    from torch import Tensor

    from pft_core.encoding import BranchedBatch

MEASURES: dict[str, Callable[[AnswerPairs], Tensor]] = {
    "log_ratio": lambda pairs: pairs.log_ratio,  # DPO's reward margin is beta times this
    "ratio_accuracy": lambda pairs: (pairs.log_ratio > 0).to(pairs.chosen.dtype),
    "displacement": lambda pairs: pairs.chosen - pairs.chosen_reference,
    "rejected_displacement": lambda pairs: pairs.rejected - pairs.rejected_reference,
}


def with_displacement(objective: Objective) -> Objective:
    """Return the objective with each measure's mean over the pairs of each side as a term without weight.

    The returned objective reads reference log-probabilities.
    """
    add_measures = _add_chosen_and_rejected if objective.view == "preference" else _add_displacement
    return add_measures(objective)


def _add_chosen_and_rejected(objective: Objective) -> Objective:
    def denominators(counts: LabelCounts) -> NDArray[np.float64]:
        return np.tile(pairs_per_side(counts), len(MEASURES))

    def sums(logps_R: Tensor, batch: BranchedBatch) -> Tensor:
        pairs = answer_pairs(logps_R.detach(), batch)
        return joined([per_side(measure(pairs), pairs.side) for measure in MEASURES.values()])

    return _add_reference_terms(objective, tuple(MEASURES), denominators, sums)


def _add_displacement(objective: Objective) -> Objective:
    def denominators(counts: LabelCounts) -> NDArray[np.float64]:
        answers_2: NDArray[np.float64] = (counts.per_side() > 0).sum(axis=0).astype(np.float64)
        return answers_2

    def sums(logps_R: Tensor, batch: BranchedBatch) -> Tensor:
        return per_side(logps_R.detach() - batch.reference_R.to(logps_R.dtype), batch.branch_side)

    return _add_reference_terms(objective, ("displacement",), denominators, sums)


def _add_reference_terms(
    objective: Objective,
    names: tuple[str, ...],
    denominators: Callable[[LabelCounts], NDArray[np.float64]],
    sums: Callable[[Tensor, BranchedBatch], Tensor],
) -> Objective:
    terms = tuple(term for name in names for term in side_terms(0.0, 0.0, name=name))
    return replace(add_terms(objective, terms, denominators, sums), uses_reference=True)
