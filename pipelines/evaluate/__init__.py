"""A policy asked every item of a data set, by Ray Data actors, in this process, or through a server."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.evaluate.actor_job import Job
    from pipelines.evaluate.capability import ask_capability, ask_lm_eval
    from pipelines.evaluate.config import EvaluateConfig, refuse_missing_inputs
    from pipelines.evaluate.in_process import ask_here, asking_job, untrained
    from pipelines.evaluate.policy import answerers
    from pipelines.evaluate.pool import ask_on_ray
    from pipelines.evaluate.request import read_items, refuse_too_few_scenarios
    from pipelines.evaluate.tracking import headline_metrics
else:
    __getattr__ = lazy_exports(__name__)
