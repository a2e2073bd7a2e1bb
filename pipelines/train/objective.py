"""The training objective that a config names."""

from collections.abc import Sequence

from pft_core.data import PreferenceSpace
from pft_core.objectives import Objective, ObjectiveSettings, build_objective
from pipelines.config import TrainConfig


def objective_of(train: TrainConfig, axes: Sequence[str]) -> Objective:
    """Build the objective. axes: those of the data's space, in its order."""
    settings = ObjectiveSettings(
        name=train.objective,
        alpha=train.alpha,
        beta=train.beta,
        update=train.update,
        preference_beta=train.preference_beta,
        simpo_gamma=train.simpo_gamma,
        nll_weight=train.nll_weight,
        axes=tuple(axes),
        reports_displacement=train.diagnostics_every > 0,
    )
    return build_objective(settings)


def axis_names(space: PreferenceSpace) -> tuple[str, ...]:
    return tuple(axis.name for axis in space.axes)
