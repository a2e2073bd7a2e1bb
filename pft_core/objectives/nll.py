"""Objectives on the log-likelihood of demonstrations: paired, one-sided, mixed, and paired over several axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pft_core.data import SIDES
from pft_core.encoding import LabelCounts
from pft_core.objectives.objective import SIDE_NAMES, LossTerm, Objective, per_side
from pft_core.objectives.settings import ObjectiveSettings

if TYPE_CHECKING:
    from torch import Tensor

    from pft_core.encoding import BranchedBatch


def label_tokens_per_side(counts: LabelCounts) -> NDArray[np.float64]:
    """Return the number of label tokens of each side [2]."""
    labels_2: NDArray[np.float64] = counts.per_side().sum(axis=0).astype(np.float64)
    return labels_2


def nll_per_side(logps_R: Tensor, batch: BranchedBatch) -> Tensor:
    """Return the negative log-likelihood summed by side [2]."""
    return per_side(-logps_R, batch.branch_side)


def paired_nll(*, alpha: float, beta: float, update: str = "synchronous") -> Objective:
    """Return the objective of preference-paired fine-tuning: `alpha * CE(y+ | x, p+) + beta * CE(y- | x, p-)`.

    Synchronous: one update from both sides (PFT, App. D, eq. 9-11). Asynchronous: one update for the first side with
    weight alpha, then one for the second side with weight beta at the updated parameters (eq. 7-8). A side with weight
    0 does not run: it trains nothing and costs nothing.
    """
    sides = weighted_sides(alpha, beta)
    phases = (sides,) if update == "synchronous" else tuple((side,) for side in sides)
    return Objective(side_terms(alpha, beta), phases, label_tokens_per_side, nll_per_side)


def weighted_sides(first: float, second: float) -> tuple[int, ...]:
    """Return the sides whose weight is not 0."""
    return tuple(side for side, weight in zip(SIDES, (first, second), strict=True) if weight)


def side_terms(first: float, second: float, *, name: str = "loss") -> tuple[LossTerm, ...]:
    """Return one term per side with these weights: `<name>_first` and `<name>_second`."""
    weights = enumerate(zip(SIDE_NAMES, (first, second), strict=True))
    return tuple(LossTerm(f"{name}_{side_name}", weight, side) for side, (side_name, weight) in weights)


def one_sided_nll(*, side: int) -> Objective:
    """Return the objective of supervised fine-tuning on one pole of every axis; the other pole's branch never runs."""
    terms = side_terms(1.0, 0.0) if side == 0 else side_terms(0.0, 1.0)
    return Objective(terms, ((side,),), label_tokens_per_side, nll_per_side)


def mixed_nll() -> Objective:
    """Return the objective of supervised fine-tuning on both poles' demonstrations, shuffled together: the mean over a
    step's label tokens.

    It does not use the pairing: the two sides of a pair usually land in different updates.
    """

    def denominators(counts: LabelCounts) -> NDArray[np.float64]:
        return np.array([counts.num_labels_EB.sum()], dtype=np.float64)

    def sums(logps_R: Tensor, batch: BranchedBatch) -> Tensor:
        return -logps_R.sum(dim=0, keepdim=True)

    return Objective((LossTerm("loss", 1.0),), (SIDES,), denominators, sums, splits_pairs=True)


def k_way_nll(*, alpha: float, beta: float, axes: Sequence[str]) -> Objective:
    """Return the objective of paired fine-tuning on k axes at once: the mean over axes of each axis's paired loss.

    The sum of each axis and side is divided by its own label tokens in the step, so an axis with longer answers or more
    pairs weighs no more than another.
    """
    num_axes = len(axes)
    terms = tuple(t for axis in axes for t in side_terms(alpha / num_axes, beta / num_axes, name=f"{axis}/loss"))

    def denominators(counts: LabelCounts) -> NDArray[np.float64]:
        labels_A2 = np.zeros((num_axes, len(SIDES)))
        np.add.at(labels_A2, counts.axis_E, counts.per_side())
        return labels_A2.reshape(-1)

    def sums(logps_R: Tensor, batch: BranchedBatch) -> Tensor:
        term_R = len(SIDES) * batch.example_axis[batch.branch_example] + batch.branch_side
        return logps_R.new_zeros(len(terms)).index_add(0, term_R, -logps_R)

    return Objective(terms, (weighted_sides(alpha, beta),), denominators, sums)


def pft(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """Preference-paired fine-tuning: the cross-entropy of both sides, weighted by alpha and beta."""
    return paired_nll(alpha=settings.alpha, beta=settings.beta, update=settings.update)


def k_way(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """Paired fine-tuning with every axis weighted equally."""
    return k_way_nll(alpha=settings.alpha, beta=settings.beta, axes=axes)


def one_sided_first(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """Supervised fine-tuning on the first pole of every axis."""
    return one_sided_nll(side=0)


def one_sided_second(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """Supervised fine-tuning on the second pole of every axis."""
    return one_sided_nll(side=1)


def mixed(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """Supervised fine-tuning on both poles' demonstrations, unpaired."""
    return mixed_nll()
