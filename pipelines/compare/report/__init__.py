"""The report of a comparison: a page, tables in Markdown and LaTeX, and sentences about them."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.compare.report.comparison_report import write_comparison
    from pipelines.compare.report.comparison_schema import ComparisonReport, LearningCurve, RunLine, RunOrigin
else:
    __getattr__ = lazy_exports(__name__)
