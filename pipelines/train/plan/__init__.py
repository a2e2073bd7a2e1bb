"""The plan of a training that is not started: data, steps, tokens, counted memory, files, and its state."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.train.plan.planned_run import dry_run
else:
    __getattr__ = lazy_exports(__name__)
