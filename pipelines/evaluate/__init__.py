"""Evaluation of a policy on a data set, by Ray Data actors, in this process, or through a server."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.evaluate.answering_job import AnsweringJob
    from pipelines.evaluate.capability_answers import ask_capability, ask_lm_eval
    from pipelines.evaluate.evaluate_config import EvaluateConfig, refuse_missing_inputs
    from pipelines.evaluate.evaluation_request import read_items, refuse_too_few_scenarios
    from pipelines.evaluate.local_answers import answering_job_of, ask_here, base_reference
    from pipelines.evaluate.policy import answerers
    from pipelines.evaluate.pool import ask_on_ray
    from pipelines.evaluate.tracking import headline_metrics
else:
    __getattr__ = lazy_exports(__name__)
