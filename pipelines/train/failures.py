"""What becomes of a run whose workers failed: a user's mistake ends it at once, the rest is tried again."""

import ray
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import TrainingFailedError

from pipelines.jobs import unwrap_user_error


class Failures(DefaultFailurePolicy):
    """Ray Train's own policy tries everything again, a full disk too."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if unwrap_user_error(training_failed_error):
            return FailureDecision.RAISE
        decision: FailureDecision = super().make_decision(training_failed_error)
        return decision


def was_killed(error: TrainingFailedError) -> bool:
    """Whether a worker ended without a word, as when the system takes its memory back."""
    failures = getattr(error, "worker_failures", {}).values()
    return any(isinstance(f, (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)) for f in failures)
