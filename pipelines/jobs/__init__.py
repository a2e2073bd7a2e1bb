"""Job running: reuse, continue or start a run under a lock; join or start Ray; unwrap the errors that Ray wraps."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.jobs.capacity import fair_threads, has_gpus, num_parallel, refuse_missing_resources
    from pipelines.jobs.cluster import ensure_ray, has_started_ray, refuse_unusable_environment
    from pipelines.jobs.lock import is_locked, locked
    from pipelines.jobs.nodes import on_this_node, wait_for_the_head
    from pipelines.jobs.restart import missing_code, start_again
    from pipelines.jobs.runner import (
        CHECKPOINTS,
        CONFIG_NAME,
        JOB_NAME,
        LOG_NAME,
        config_identity,
        data_digests,
        expected_run,
        finished_result,
        remove_run,
        run_job,
        run_key,
        steps_saved,
    )
    from pipelines.jobs.running_code import code_digest
    from pipelines.jobs.unused_packages import UNUSED
    from pipelines.jobs.user_errors import unwrap_user_error
    from pipelines.jobs.worker_deaths import MAX_RESTARTS, explain_deaths, map_batches, repeated_deaths_error
    from pipelines.jobs.workers import mark_interrupted_workers
else:
    __getattr__ = lazy_exports(__name__)
