"""Ray Train's data-parallel trainer, without what a run of ours has no use for."""

from typing import Any

from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pipelines.jobs import has_started_ray
from pipelines.train.failures import Failures


class Trainer(DataParallelTrainer):
    """Starts fewer processes: each takes seconds of a small machine's cores before the first step.

    Workers read encoded layers by index, so there is no Ray Data set to deal out. A Ray that this process has started
    ends with it, so nobody has to clean up behind a driver that dies.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback) if has_started_ray() else (DatasetsCallback,)
        return [c for c in super()._create_default_callbacks() if not isinstance(c, unused)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        policy = Failures(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**arguments | {"failure_policy": policy})

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave signals to the verb: Ray's own handler waits for the workers' end, and ends the process with 1."""
