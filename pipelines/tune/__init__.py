"""The search over alpha and beta."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.tune.contents import TrialRow
    from pipelines.tune.findings import candidates, pick, trial_rows
    from pipelines.tune.points import Point, grid_cells, grid_points, share_of, soup_points, verification_points
    from pipelines.tune.trial import Trial
else:
    __getattr__ = lazy_exports(__name__)
