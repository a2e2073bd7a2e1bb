"""The process group of the training workers, as in Ray's `TorchConfig`, without torch in driver and controller.

Ray's class imports torch in both, which takes three seconds in two processes that compute nothing. Here only the
workers import it.
"""

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

SHUTDOWN_LIMIT_S = 5


@dataclass
class ProcessGroup(BackendConfig):
    """Settings of the group. backend: gloo or nccl. timeout_s: for one collective."""

    backend: str
    timeout_s: int = 1800

    @property
    def backend_cls(self) -> type[Backend]:
        return ProcessGroupBackend

    @property
    def train_func_context(self) -> type["OnDevice"]:
        return OnDevice

    @property
    def framework(self) -> TrainingFramework:
        return TrainingFramework.TORCH

    def to_dict(self) -> dict[str, Any]:
        return {"backend": self.backend, "init_method": "env", "timeout_s": self.timeout_s}


class OnDevice:
    """Context of the training function: sets the worker's own GPU, if any, as the current device."""

    def __enter__(self) -> None:
        from ray.train.torch.config import TorchConfigContextManager

        TorchConfigContextManager().__enter__()

    def __exit__(self, *_: object) -> None:
        pass


class ProcessGroupBackend(Backend):
    """Starts and ends the group from the controller, which only sends functions to the workers by name."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        size = len(worker_group)
        joining = [
            worker_group.execute_single_async(
                rank,
                join,
                address=address,
                port=port,
                world_rank=rank,
                size=size,
                backend=backend_config.backend,
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(size)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        leaving = worker_group.execute_async(leave, several=len(worker_group) > 1)
        ray.wait(leaving, num_returns=len(leaving), timeout=SHUTDOWN_LIMIT_S)


def join(*, address: str, port: int, world_rank: int, size: int, backend: str, timeout_s: int) -> None:
    """Join the group; runs on a worker."""
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(backend, world_rank, size, "env://", timeout_s)


def leave(*, several: bool) -> None:
    """Leave the group; runs on a worker."""
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=several)
