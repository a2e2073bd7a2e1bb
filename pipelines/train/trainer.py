"""Ray Train's data-parallel trainer without unused parts; a UserError ends it without retries."""

from typing import Any

import ray
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from pipelines.jobs import has_started_ray, unwrap_user_error


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
