"""Metrics: their definitions, and the counts and report rows computed from outcomes."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pft_core.evaluation.metrics.counts import CountTable, count_table
    from pft_core.evaluation.metrics.measuring import finite, value_of_run
    from pft_core.evaluation.metrics.metric import Metric
    from pft_core.evaluation.metrics.metric_rows import EvaluationRow, report_rows
    from pft_core.evaluation.metrics.outcome import Choice, Outcome, WeightedChoice, always_by_position
    from pft_core.evaluation.metrics.registry import METRICS, metrics_where, pairs_first
else:
    __getattr__ = lazy_exports(__name__)
