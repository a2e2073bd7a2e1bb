"""Objectives on pairs of a chosen and a rejected answer under one prompt: DPO, IPO, SimPO, and DPO with an NLL term.

Under the preference of either side the chosen answer is that side's demonstration and the rejected one the other
side's, so a record gives one pair for each side. The branches of a batch alternate: chosen, rejected, chosen, ...
Means are over pairs, per side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pft_core.data import SIDES
from pft_core.encoding import LabelCounts
from pft_core.objectives.nll import side_terms
from pft_core.objectives.objective import Objective, add_terms, per_side
from pft_core.objectives.settings import ObjectiveSettings

if TYPE_CHECKING:
    from torch import Tensor

    from pft_core.encoding import BranchedBatch

# N pairs of a batch.


@dataclass(frozen=True)
class AnswerPairs:
    """The pairs of a batch [N]: log-probabilities of policy and reference, label tokens, and the side asked for.

    Pairs without labels, which an idle rank runs, are in it and have `num_chosen` 0.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_reference: Tensor
    rejected_reference: Tensor
    num_chosen: Tensor
    num_rejected: Tensor
    side: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """How much further than the reference the policy puts chosen above rejected."""
        return (self.chosen - self.chosen_reference) - (self.rejected - self.rejected_reference)


def answer_pairs(logps_R: Tensor, batch: BranchedBatch) -> AnswerPairs:
    """Split alternating branches into pairs."""
    labels_R = batch.num_labels_R
    reference_R = batch.reference_R.to(logps_R.dtype)
    return AnswerPairs(
        logps_R[::2], logps_R[1::2], reference_R[::2], reference_R[1::2], labels_R[::2], labels_R[1::2],
        batch.branch_side[::2],
    )  # fmt: skip


PairLoss = Callable[[AnswerPairs], "Tensor"]  # -> loss per pair [N]


def dpo_loss(pairs: AnswerPairs, *, beta: float) -> Tensor:
    """`-log sigmoid(beta * log_ratio)` (Rafailov et al. 2023, eq. 7)."""
    return negative_log_sigmoid(beta * pairs.log_ratio)


def ipo_loss(pairs: AnswerPairs, *, beta: float) -> Tensor:
    """`(log_ratio - 1 / (2 beta))^2` with log-ratios per label token (Azar et al. 2024, eq. 17, beta for tau).

    Whole log-probabilities would let the length of an answer decide; TRL reports that the authors divided by it too.
    """
    chosen = (pairs.chosen - pairs.chosen_reference) / pairs.num_chosen.clamp(min=1)
    rejected = (pairs.rejected - pairs.rejected_reference) / pairs.num_rejected.clamp(min=1)
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def simpo_loss(pairs: AnswerPairs, *, beta: float, gamma: float) -> Tensor:
    """`-log sigmoid(beta * (mean chosen - mean rejected) - gamma)`, per label token, without a reference
    (Meng et al. 2024, eq. 6)."""
    chosen = pairs.chosen / pairs.num_chosen.clamp(min=1)
    rejected = pairs.rejected / pairs.num_rejected.clamp(min=1)
    return negative_log_sigmoid(beta * (chosen - rejected) - gamma)


def negative_log_sigmoid(values: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return -logsigmoid(values)


def preference_objective(
    pair_loss: PairLoss, *, alpha: float, beta: float, sides: Sequence[int] = SIDES, uses_reference: bool = True
) -> Objective:
    """An objective with one term for each side: alpha and beta weigh the mean loss over the pairs of either side."""
    first, second = (weight if side in sides else 0.0 for side, weight in zip(SIDES, (alpha, beta), strict=True))

    def sums(logps_R: Tensor, batch: BranchedBatch) -> Tensor:
        pairs = answer_pairs(logps_R, batch)
        return per_side(pair_loss(pairs).where(pairs.num_chosen > 0, 0.0), pairs.side)

    terms = side_terms(first, second)
    return Objective(terms, (tuple(sides),), pairs_per_side, sums, "preference", uses_reference)


def pairs_per_side(counts: LabelCounts) -> NDArray[np.float64]:
    pairs_per_example = np.bincount(counts.side_B[::2], minlength=len(SIDES)).astype(np.float64)
    return pairs_per_example * len(counts.num_labels_EB)


def with_nll(objective: Objective, *, weight: float) -> Objective:
    """Add the chosen answers' mean negative log-likelihood per label token (Pang et al. 2024, eq. 1)."""
    weights = [weight if side in objective.trained_sides else 0.0 for side in SIDES]

    def denominators(counts: LabelCounts) -> NDArray[np.float64]:
        chosen = replace(counts, num_labels_EB=counts.num_labels_EB[:, ::2], side_B=counts.side_B[::2])
        return chosen.per_side().sum(axis=0).astype(np.float64)

    def sums(logps_R: Tensor, batch: BranchedBatch) -> Tensor:
        return per_side(-logps_R[::2], batch.branch_side[::2])

    return add_terms(objective, side_terms(*weights, name="nll"), denominators, sums)


def dpo(settings: ObjectiveSettings, axes: Sequence[str], *, sides: Sequence[int] = SIDES) -> Objective:
    """DPO under both poles: the completion of the stated pole is preferred to the other one's."""
    loss = partial(dpo_loss, beta=settings.preference_beta)
    return preference_objective(loss, alpha=settings.alpha, beta=settings.beta, sides=sides)


def dpo_first(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """DPO under the first pole alone."""
    return dpo(settings, axes, sides=(0,))


def dpo_second(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """DPO under the second pole alone."""
    return dpo(settings, axes, sides=(1,))


def dpo_nll(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """DPO with the negative log-likelihood of the preferred completion added."""
    return with_nll(dpo(settings, axes), weight=settings.nll_weight)


def ipo(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """IPO under both poles: a squared loss on the log-ratio per token, with a target margin."""
    loss = partial(ipo_loss, beta=settings.preference_beta)
    return preference_objective(loss, alpha=settings.alpha, beta=settings.beta)


def simpo(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """SimPO under both poles: log-probabilities per token and a target margin, without a reference model."""
    loss = partial(simpo_loss, beta=settings.preference_beta, gamma=settings.simpo_gamma)
    return preference_objective(loss, alpha=settings.alpha, beta=settings.beta, uses_reference=False)
