"""Objectives on a chosen and a rejected answer to the same prompt: DPO, IPO, SimPO, and DPO with an NLL term.

Under the condition of a side, the chosen answer is that side's demonstration and the rejected answer is the other
side's, so a record gives one answer pair per side. The branches of a batch alternate: chosen, rejected, chosen, ...
Means are over answer pairs, per side.
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
    """The answer pairs of a batch [N]: log-probabilities under policy and reference, label tokens, and the side.

    Pairs without labels, which an idle rank runs, are included with `num_chosen` 0.
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
        """How much more than the reference the policy prefers the chosen answer to the rejected one [N]."""
        return (self.chosen - self.chosen_reference) - (self.rejected - self.rejected_reference)


def answer_pairs(logps_R: Tensor, batch: BranchedBatch) -> AnswerPairs:
    """Group alternating branches into answer pairs."""
    labels_R = batch.num_labels_R
    reference_R = batch.reference_R.to(logps_R.dtype)
    return AnswerPairs(
        logps_R[::2], logps_R[1::2], reference_R[::2], reference_R[1::2], labels_R[::2], labels_R[1::2],
        batch.branch_side[::2],
    )  # fmt: skip


PairLoss = Callable[[AnswerPairs], "Tensor"]  # -> loss per pair [N]


def dpo_loss(pairs: AnswerPairs, *, beta: float) -> Tensor:
    """Return `-log sigmoid(beta * log_ratio)` per pair [N] (Rafailov et al. 2023, eq. 7)."""
    return negative_log_sigmoid(beta * pairs.log_ratio)


def ipo_loss(pairs: AnswerPairs, *, beta: float) -> Tensor:
    """Return `(log_ratio - 1 / (2 beta))^2` per pair [N], with log-ratios per label token (Azar et al. 2024, eq. 17,
    with beta for tau).

    With summed log-probabilities, the length of an answer would decide; TRL reports that the authors divided by it too.
    """
    chosen = (pairs.chosen - pairs.chosen_reference) / pairs.num_chosen.clamp(min=1)
    rejected = (pairs.rejected - pairs.rejected_reference) / pairs.num_rejected.clamp(min=1)
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def simpo_loss(pairs: AnswerPairs, *, beta: float, gamma: float) -> Tensor:
    """Return `-log sigmoid(beta * (mean chosen - mean rejected) - gamma)` per pair [N], with means per label token and
    no reference (Meng et al. 2024, eq. 6)."""
    chosen = pairs.chosen / pairs.num_chosen.clamp(min=1)
    rejected = pairs.rejected / pairs.num_rejected.clamp(min=1)
    return negative_log_sigmoid(beta * (chosen - rejected) - gamma)


def negative_log_sigmoid(values: Tensor) -> Tensor:
    """Return `-log sigmoid(x)` of each value."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(values)


def preference_objective(
    pair_loss: PairLoss, *, alpha: float, beta: float, sides: Sequence[int] = SIDES, uses_reference: bool = True
) -> Objective:
    """Return an objective with one term per side: alpha and beta weight the mean loss over that side's answer pairs."""
    first, second = (weight if side in sides else 0.0 for side, weight in zip(SIDES, (alpha, beta), strict=True))

    def sums(logps_R: Tensor, batch: BranchedBatch) -> Tensor:
        pairs = answer_pairs(logps_R, batch)
        return per_side(pair_loss(pairs).where(pairs.num_chosen > 0, 0.0), pairs.side)

    terms = side_terms(first, second)
    return Objective(terms, (tuple(sides),), pairs_per_side, sums, "preference", uses_reference)


def pairs_per_side(counts: LabelCounts) -> NDArray[np.float64]:
    """Return the number of answer pairs of each side [2]."""
    pairs_per_example = np.bincount(counts.side_B[::2], minlength=len(SIDES)).astype(np.float64)
    return pairs_per_example * len(counts.num_labels_EB)


def with_nll(objective: Objective, *, weight: float) -> Objective:
    """Return the objective plus the chosen answers' mean negative log-likelihood per label token, times weight
    (Pang et al. 2024, eq. 1)."""
    weights = [weight if side in objective.trained_sides else 0.0 for side in SIDES]

    def denominators(counts: LabelCounts) -> NDArray[np.float64]:
        chosen = replace(counts, num_labels_EB=counts.num_labels_EB[:, ::2], side_B=counts.side_B[::2])
        labels_2: NDArray[np.float64] = chosen.per_side().sum(axis=0).astype(np.float64)
        return labels_2

    def sums(logps_R: Tensor, batch: BranchedBatch) -> Tensor:
        return per_side(-logps_R[::2], batch.branch_side[::2])

    return add_terms(objective, side_terms(*weights, name="nll"), denominators, sums)


def dpo(settings: ObjectiveSettings, axes: Sequence[str], *, sides: Sequence[int] = SIDES) -> Objective:
    """DPO on both sides' answer pairs, each under its own condition."""
    loss = partial(dpo_loss, beta=settings.preference_beta)
    return preference_objective(loss, alpha=settings.alpha, beta=settings.beta, sides=sides)


def dpo_first(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """DPO on the first side's answer pairs."""
    return dpo(settings, axes, sides=(0,))


def dpo_second(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """DPO on the second side's answer pairs."""
    return dpo(settings, axes, sides=(1,))


def dpo_nll(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """Paired DPO plus the negative log-likelihood of the chosen answers."""
    return with_nll(dpo(settings, axes), weight=settings.nll_weight)


def ipo(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """Paired IPO: the squared distance of the margin from a target."""
    loss = partial(ipo_loss, beta=settings.preference_beta)
    return preference_objective(loss, alpha=settings.alpha, beta=settings.beta)


def simpo(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """Paired SimPO: length-normalized margins without a reference."""
    loss = partial(simpo_loss, beta=settings.preference_beta, gamma=settings.simpo_gamma)
    return preference_objective(loss, alpha=settings.alpha, beta=settings.beta, uses_reference=False)
