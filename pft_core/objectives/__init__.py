"""Losses as small functions on the log-probabilities of branches, and the metrics reported with them."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pft_core.objectives.build import build_objective
    from pft_core.objectives.nll import paired_nll
    from pft_core.objectives.objective import SIDE_NAMES, Objective
    from pft_core.objectives.registry import KNOBS, OBJECTIVES, ObjectiveEntry
    from pft_core.objectives.settings import ObjectiveSettings
else:
    __getattr__ = lazy_exports(__name__)
