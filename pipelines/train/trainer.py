"""Ray Train's data-parallel trainer without unused parts, whose retries a UserError ends; its workers' environment."""

import os
from pathlib import Path
from typing import Any

import ray
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from pft_core.policies import weight_files
from pipelines.config import RunConfig
from pipelines.jobs import fair_threads, has_started_ray, unwrap_user_error

# glibc either keeps freed tensors (SmolLM2 on two cores: 5.0 GB, 5.6 s a step) or returns each to the system at once
# (2.9 GB, 8.4 s). The jemalloc that Ray ships has the speed of the one in the memory of the other (2.8 GB, 5.8 s).
JEMALLOC = Path(ray.__file__).with_name("core") / "libjemalloc.so"
LARGE_WEIGHTS_BYTES = 10**8  # smaller models are not worth a worker process of their own


class TrainingFailurePolicy(DefaultFailurePolicy):
    """Raises a UserError at once; Ray Train's own policy retries everything, even a full disk."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if unwrap_user_error(training_failed_error):
            return FailureDecision.RAISE
        decision: FailureDecision = super().make_decision(training_failed_error)
        return decision


def was_killed(error: TrainingFailedError) -> bool:
    """Return whether a worker died without an error, as when the system kills it for its memory use."""
    return any(map(_is_death, _failures(error)))


def were_all_killed(error: TrainingFailedError) -> bool:
    """Return whether every failed worker died without an error."""
    return was_killed(error) and all(map(_is_death, _failures(error)))


def _failures(error: TrainingFailedError) -> list[Exception]:
    return list(getattr(error, "worker_failures", {}).values())


def _is_death(failure: Exception) -> bool:
    return isinstance(failure, ray.exceptions.RayActorError | ray.exceptions.OutOfMemoryError)


class Trainer(DataParallelTrainer):
    """Starts fewer processes, since each costs seconds of CPU time on a small machine before the first step.

    Workers read encoded layers by index, so there is no Ray Data set to distribute. A Ray started by this process ends
    with it, so no process needs to clean up after a driver that dies.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback) if has_started_ray() else (DatasetsCallback,)
        return [c for c in super()._create_default_callbacks() if not isinstance(c, unused)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        policy = TrainingFailurePolicy(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**arguments | {"failure_policy": policy})

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave signals to the verb: Ray's own handler waits for the workers and exits with 1."""


def worker_environment(config: RunConfig) -> dict[str, Any]:
    """Return the runtime environment of a worker: threads, if not as many as Ray sets, and a large model's allocator.

    An empty one lets Ray use a process that it has started already.
    """
    scaling, cpus = config.scaling, max(1, int(config.scaling.worker_resources.get("CPU", 1)))
    if scaling.threads_per_worker != "auto":
        threads = scaling.threads_per_worker
    else:
        threads = cpus if scaling.resources_per_worker else fair_threads(scaling.num_workers)
    variables = {} if threads == cpus else {"OMP_NUM_THREADS": str(threads)}
    if not scaling.use_gpu and "LD_PRELOAD" not in os.environ and JEMALLOC.is_file() and _is_large(str(config.model)):
        variables["LD_PRELOAD"] = str(JEMALLOC)
    return {"env_vars": variables} if variables else {}


def _is_large(model: str) -> bool:
    """Return whether a model's tensors are large; one that is yet to be downloaded counts as such."""
    files = weight_files(model)
    return not files or sum(file.stat().st_size for file in files) >= LARGE_WEIGHTS_BYTES
