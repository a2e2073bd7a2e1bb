"""A TrainContext without Ray: one folder on one machine, in a single process or under torchrun."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from pft_core.files import replace_folder
from pft_core.training import checkpoint
from pft_core.training.progress import Stage, unwatched


class LocalContext:
    """Stores checkpoints as `checkpoint-<step>` in a folder that all ranks share, and passes metrics to a callable."""

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device,
        log: Callable[[int, dict[str, float]], None] = lambda *_: None,
        say: Callable[[str], None] = lambda _: None,
        stage: Stage = unwatched,
    ):
        self.folder = folder
        self.device = device
        self.log = log
        self.say = say
        self.stage = stage
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1

    def checkpoint_folder(self, step: int) -> Path:
        """Return the checkpoint folder under its unfinished name, emptied of what an interrupted attempt left there."""
        folder = self.folder / f"unfinished-checkpoint-{step:08d}"
        if self.rank == 0 and folder.exists():
            shutil.rmtree(folder)
        self._barrier()
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, folder: Path, metrics: dict[str, float]) -> None:
        """Rename the folder to its final name once every rank has written."""
        self._barrier()
        if self.rank == 0:
            replace_folder(folder, folder.with_name(folder.name.removeprefix("unfinished-")))
        self._barrier()

    def latest_checkpoint(self) -> Path | None:
        """Return the newest undamaged checkpoint, or None."""
        return checkpoint.newest_verified(sorted(self.folder.glob("checkpoint-*"), reverse=True))

    def _barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()
