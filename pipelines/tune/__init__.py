"""The search for the ratio of alpha and beta."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.tune.conclusions import candidates, pick, trial_rows
    from pipelines.tune.search_points import (
        SearchPoint,
        grid_cells,
        grid_points,
        share_of,
        soup_points,
        verification_points,
    )
    from pipelines.tune.search_schema import TrialRow
    from pipelines.tune.trial import Trial
else:
    __getattr__ = lazy_exports(__name__)
