"""An objective of your own: paired fine-tuning that spends less on the answers that the policy already finds likely."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pft_core.objectives import OBJECTIVES, Objective, ObjectiveEntry, ObjectiveSettings, paired_nll


def focal_sums(logps_R: Any, batch: Any) -> Any:
    """Return each side's sum of `(1 - p) * -log p`: p is the mean probability of a label token of the answer.

    logps_R: the summed log-probability of each answer of the batch, a tensor. The factor carries no gradient.
    """
    labels_R = batch.num_labels_R.clamp(min=1)
    weight_R = 1 - (logps_R.detach() / labels_R).exp()
    return logps_R.new_zeros(2).index_add(0, batch.branch_side, -weight_R * logps_R)


def focal(settings: ObjectiveSettings, axes: Sequence[str]) -> Objective:
    """Build the objective; axes: the names of the data's axes, which this one does not need."""
    return replace(paired_nll(alpha=settings.alpha, beta=settings.beta), sums=focal_sums)


OBJECTIVES.add("focal", ObjectiveEntry(focal, knobs=("alpha", "beta")))
