"""What Ray Train runs on every worker: a context that reports through Ray, around `fitting`.

The module is light, so that a driver can name it: torch and all that comes with it are imported by the worker.
"""

import shutil
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import ray
import ray.train

from pft_core.errors import UserError
from pft_core.lazy import absent
from pft_core.training import MemoryUse
from pipelines.jobs import UNUSED
from pipelines.train.encoding import encoded
from pipelines.train.mailbox import EncodingResult
from pipelines.train.resolved_run import ResolvedRun, RunLayers

MAILBOX_LIMIT_S = 30.0


class MemoryRanOut(Exception):
    """An attempt found no memory, and the next will do with less: Ray Train starts all workers again."""


class RayContext:
    """A TrainContext on Ray Train: checkpoints go through `ray.train.report`, metrics to the driver's mailbox."""

    def __init__(self, mailbox: Any):
        from ray.train.torch import get_device

        self.rank = ray.train.get_context().get_world_rank()
        self.world_size = ray.train.get_context().get_world_size()
        self.device = get_device()
        self._mailbox = mailbox
        self._step = 0
        self._open = ExitStack()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._mailbox.put.remote(step, metrics)

    def checkpoint_folder(self, step: int) -> Path:
        self._step = step
        folder = tempfile.mkdtemp(prefix=f"pft-checkpoint-{step}-")
        self._open.callback(shutil.rmtree, folder, ignore_errors=True)  # of one that is not reported
        return Path(folder)

    def commit(self, folder: Path, metrics: dict[str, float]) -> None:
        if self.rank == 0 and (fault := ray.get(self._mailbox.written.remote(wait_s=MAILBOX_LIMIT_S))):
            raise fault
        saved = ray.train.Checkpoint.from_directory(str(folder))
        ray.train.report({"step": self._step, **metrics}, saved, delete_local_checkpoint_after_upload=True)

    def close(self) -> None:
        self._open.close()

    def latest_checkpoint(self) -> Path | None:
        """Return the newest reported checkpoint; `mend_snapshot` listed whole ones only, and loading checks again."""
        saved = ray.train.get_checkpoint()
        return None if saved is None else Path(self._open.enter_context(saved.as_directory()))


def train_worker(inputs: dict[str, Any]) -> dict[str, Any]:
    """Entry point on a Ray Train worker. A user's mistake is returned, not raised: all ranks have met it.

    So is a lost mailbox: the driver starts the run again with another.
    """
    run, mailbox = inputs["run"], inputs["mailbox"]
    if is_lost(mailbox):
        return {"lost": "mailbox"}
    with absent(*UNUSED):
        from pft_core.training import NonFiniteError, OutOfMemoryError

    try:
        result = fitted(run, inputs["layers"] or layers_from(run, mailbox), mailbox)
    except OutOfMemoryError:
        raise  # a mistake of this rank alone: the others wait for it
    except (UserError, NonFiniteError) as error:
        return {"error": str(error)}
    return {"steps": result.steps, "pairs": result.pairs, "resumed_from": result.resumed_from}


def fitted(run: ResolvedRun, layers: RunLayers, mailbox: Any) -> Any:
    """Build and fit, as sparingly as earlier attempts have shown to be needed.

    Raises MemoryRanOut where the next attempt can do with less, OutOfMemoryError where none can.
    """
    with absent(*UNUSED):
        from pft_core.training import OutOfMemoryError
        from pipelines.train.fitting import build_and_fit

    plans: list[MemoryUse] = []

    def tell(memory: MemoryUse) -> None:
        plans.append(memory)
        ray.get(mailbox.plan.remote(memory))

    memory_fallback = ray.get(mailbox.memory_fallback.remote(run.config.train))
    try:
        with closing(RayContext(mailbox)) as context:
            return build_and_fit(run, layers, context, memory_fallback=memory_fallback, tell=tell)
    except OutOfMemoryError:
        if not plans or plans[-1].next(run.config.train) is None:
            raise
        ray.get(mailbox.run_out.remote())
        raise MemoryRanOut from None


def is_lost(mailbox: Any) -> bool:
    """Whether the driver's mailbox is gone: a worker that finds out in a step fails, and all of them start again."""
    try:
        ray.get(mailbox.is_encoded.remote())
    except ray.exceptions.RayActorError:
        return True
    return False


def layers_from(run: ResolvedRun, mailbox: Any) -> RunLayers:
    """Return the run's layers, which the first worker encodes where they are missing. Raises UserError on all."""
    if ray.train.get_context().get_world_rank() == 0 and not ray.get(mailbox.is_encoded.remote()):
        ray.get(mailbox.tell_encoded.remote(encode(run)))
    told: EncodingResult = ray.get(mailbox.encoded.remote())
    if told.layers is None:
        raise UserError(told.mistake)
    return told.layers


def encode(run: ResolvedRun) -> EncodingResult:
    notes: list[str] = []
    try:
        return EncodingResult(encoded(run, say=notes.append), notes=tuple(notes))
    except UserError as error:
        return EncodingResult(mistake=str(error), notes=tuple(notes))
