"""Reports that a person reads: one HTML file and the JSON behind it."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.reporting.charts import (
        MAX_POINTS,
        BarPanel,
        Row,
        Scale,
        bar_panels,
        drawable,
        labels_apart,
        short,
        smoothed,
        ticks,
        ticks_between,
    )
    from pipelines.reporting.pages import render_template
    from pipelines.reporting.report import CURVE_NAMES, seconds, without_credentials, write_report
else:
    __getattr__ = lazy_exports(__name__)
