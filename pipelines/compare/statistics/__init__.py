"""Rows of a comparison: means with intervals, paired tests, and the area under the curve over variants."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.compare.statistics.area import AREA, area_rows
    from pipelines.compare.statistics.capability_loss import capability_rows
    from pipelines.compare.statistics.comparison_rows import (
        MethodOutcomes,
        holm_corrected,
        on_common_items,
        rows_of,
        run_rows,
        significance_against,
    )
    from pipelines.compare.statistics.row_schema import ComparisonRow, CorrectedTest, PairedTest, VariantValue
else:
    __getattr__ = lazy_exports(__name__)
