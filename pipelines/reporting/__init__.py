"""Reports for people: one HTML file and the JSON behind it."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.reporting.bars import Bar, BarGroup, bar_chart, rows_by_pole
    from pipelines.reporting.curves import Curve, loss_chart, points_of, steps_per_point
    from pipelines.reporting.drawing import (
        DPI,
        INK,
        annotate,
        blank_figure,
        chart_style,
        fit,
        fit_ends,
        hint,
        labels_apart,
        printable,
        short,
        short_apart,
        ticks,
        width_of,
    )
    from pipelines.reporting.number_formats import p_value, seconds
    from pipelines.reporting.pages import render_template
    from pipelines.reporting.report_schema import REPORT_NAMES, Difference, Example, ItemCounts, RunReport
    from pipelines.reporting.run_page import CURVE_NAMES, curve_names
    from pipelines.reporting.run_report import without_credentials, write_report
    from pipelines.reporting.svg import inline_svg, svg_file
else:
    __getattr__ = lazy_exports(__name__)
