"""Ray Train's data-parallel trainer, without what a run of ours has no use for; a user's mistake ends it at once."""

from typing import Any

import ray
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from pipelines.jobs import has_started_ray, unwrap_user_error


class TrainingFailurePolicy(DefaultFailurePolicy):
    """Ray Train's own policy tries everything again, a full disk too."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if unwrap_user_error(training_failed_error):
            return FailureDecision.RAISE
        decision: FailureDecision = super().make_decision(training_failed_error)
        return decision


def was_killed(error: TrainingFailedError) -> bool:
    """Whether a worker ended without a word, as when the system takes its memory back."""
    return any(map(_is_death, _failures(error)))


def were_all_killed(error: TrainingFailedError) -> bool:
    """Whether no worker that failed said why."""
    return was_killed(error) and all(map(_is_death, _failures(error)))


def _failures(error: TrainingFailedError) -> list[Exception]:
    return list(getattr(error, "worker_failures", {}).values())


def _is_death(failure: Exception) -> bool:
    return isinstance(failure, ray.exceptions.RayActorError | ray.exceptions.OutOfMemoryError)


class Trainer(DataParallelTrainer):
    """Starts fewer processes: each takes seconds of a small machine's cores before the first step.

    Workers read encoded layers by index, so there is no Ray Data set to deal out. A Ray that this process has started
    ends with it, so nobody has to clean up behind a driver that dies.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback) if has_started_ray() else (DatasetsCallback,)
        return [c for c in super()._create_default_callbacks() if not isinstance(c, unused)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        policy = TrainingFailurePolicy(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**arguments | {"failure_policy": policy})

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave signals to the verb: Ray's own handler waits for the workers' end, and ends the process with 1."""
