"""The report of a comparison: a page, tables as Markdown and LaTeX, and what they say in words."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.compare.report.contents import ComparisonReport, LearningCurve, RunLine, RunOrigin
    from pipelines.compare.report.report import write_comparison
else:
    __getattr__ = lazy_exports(__name__)
