"""Build an objective from a recipe's settings."""

from collections.abc import Sequence

from pft_core.objectives.displacement import with_displacement
from pft_core.objectives.objective import Objective
from pft_core.objectives.settings import ObjectiveSettings
from pft_core.registry import load_code


def build_objective(
    settings: ObjectiveSettings, *, axes: Sequence[str] = (), reports_displacement: bool = False
) -> Objective:
    """Build the objective named in the settings. axes: those of the data's space, in its order.

    reports_displacement: whether to compare log-probabilities with a reference even if the loss does not need one.
    """
    objective: Objective = load_code(settings.entry.build)(settings, axes)
    return with_displacement(objective) if objective.uses_reference or reports_displacement else objective
