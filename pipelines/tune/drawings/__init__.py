"""The drawings of a search: its grid as a heat map, accuracy against the ratio, both poles against each other."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.tune.drawings.accuracy import accuracy_chart
    from pipelines.tune.drawings.heat_map import HeatPanel, Tile, heat_map_chart
    from pipelines.tune.drawings.measured import COLOURS, base_of, has_value, is_of
    from pipelines.tune.drawings.pareto_front import pareto_chart
else:
    __getattr__ = lazy_exports(__name__)
