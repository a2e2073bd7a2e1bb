"""Comparisons of methods over seeds and variants, with tests and yardsticks."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.compare.outcomes.job import compare_evaluations
    from pipelines.compare.suite import load_suite, shipped_suites
    from pipelines.compare.suite_inputs import refuse_missing_inputs
else:
    __getattr__ = lazy_exports(__name__)
