"""Drawings of a search: the grid as a heat map, accuracy by ratio, and one pole against the other."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.tune.drawings.accuracy import accuracy_chart
    from pipelines.tune.drawings.heat_map import HeatPanel, Tile, heat_map_chart
    from pipelines.tune.drawings.pareto_front import pareto_chart
    from pipelines.tune.drawings.trial_marks import COLORS, base_of, has_value, is_of
else:
    __getattr__ = lazy_exports(__name__)
