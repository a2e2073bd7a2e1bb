"""Ray Train's data-parallel trainer, without what a run of ours has no use for."""

from typing import Any

from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class Trainer(DataParallelTrainer):
    """Workers read encoded layers by index, so there is no Ray Data set to deal out: no process is started for it."""

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if not isinstance(c, DatasetsCallback)]
