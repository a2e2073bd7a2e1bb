"""The function that Ray Train runs on every worker: `fitting` in a context that reports through Ray.

The driver imports this module, so torch and the libraries around it are imported inside functions, on the worker.
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
from pft_core.training import MemoryUse, Stage, unwatched
from pipelines.console import console
from pipelines.jobs import UNUSED
from pipelines.progress import relayed, stage
from pipelines.train.encoding import encode_layers
from pipelines.train.mailbox import EncodingResult
from pipelines.train.resolved_run import ResolvedRun, RunLayers

MAILBOX_LIMIT_S = 30.0


class MemoryRanOut(Exception):
    """An attempt ran out of memory and the next can use less: Ray Train restarts all workers."""


class RayContext:
    """A TrainContext on Ray Train: checkpoints go through `ray.train.report`, metrics to the driver's mailbox."""

    def __init__(self, mailbox: Any):
        from ray.train.torch import get_device

        self.rank = ray.train.get_context().get_world_rank()
        self.world_size = ray.train.get_context().get_world_size()
        self.device = get_device()
        self.stage: Stage = stage if self.rank == 0 else unwatched
        self._mailbox = mailbox
        self._step = 0
        self._open = ExitStack()

    def say(self, text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._mailbox.put.remote(step, metrics)

    def checkpoint_folder(self, step: int) -> Path:
        self._step = step
        folder = tempfile.mkdtemp(prefix=f"pft-checkpoint-{step}-")
        self._open.callback(shutil.rmtree, folder, ignore_errors=True)  # if it is never reported
        return Path(folder)

    def commit(self, folder: Path, metrics: dict[str, float]) -> None:
        if self.rank == 0 and (fault := ray.get(self._mailbox.written.remote(wait_s=MAILBOX_LIMIT_S))):
            raise fault
        saved = ray.train.Checkpoint.from_directory(str(folder))
        ray.train.report({"step": self._step, **metrics}, saved, delete_local_checkpoint_after_upload=True)

    def close(self) -> None:
        self._open.close()

    def latest_checkpoint(self) -> Path | None:
        """Return the newest reported checkpoint; `mend_snapshot` lists valid ones only, and loading verifies again."""
        saved = ray.train.get_checkpoint()
        return None if saved is None else Path(self._open.enter_context(saved.as_directory()))


def train_worker(inputs: dict[str, Any]) -> dict[str, Any]:
    """Entry point on a Ray Train worker.

    A UserError is returned, not raised, since all ranks meet it. So is a lost mailbox: the driver then restarts the run
    with a new one.
    """
    run, mailbox = inputs["run"], inputs["mailbox"]
    if is_lost(mailbox):
        return {"lost": "mailbox"}
    if ray.train.get_context().get_world_rank() > 0:
        return encode_and_train(run, inputs["layers"], mailbox)
    with relayed(mailbox, ""):
        return encode_and_train(run, inputs["layers"], mailbox)


def encode_and_train(run: ResolvedRun, layers: RunLayers | None, mailbox: Any) -> dict[str, Any]:
    """Encode the data if there are no layers, and train; return steps, pairs and resumed_from, or an error."""
    with absent(*UNUSED):
        from pft_core.training import NonFiniteError, OutOfMemoryError

    try:
        result = fit_with_fallback(run, layers or layers_from(run, mailbox), mailbox)
    except OutOfMemoryError:
        raise  # on this rank alone, while the others wait for it
    except (UserError, NonFiniteError) as error:
        return {"error": str(error)}
    return {"steps": result.steps, "pairs": result.pairs, "resumed_from": result.resumed_from}


def fit_with_fallback(run: ResolvedRun, layers: RunLayers, mailbox: Any) -> Any:
    """Build and fit with the memory fallback that earlier attempts have made necessary.

    Raises MemoryRanOut if the next attempt can use less memory, OutOfMemoryError if none can.
    """
    with absent(*UNUSED):
        from pft_core.training import OutOfMemoryError
        from pipelines.train.fitting import build_and_fit

    plans: list[MemoryUse] = []

    def report(memory: MemoryUse) -> None:
        plans.append(memory)
        ray.get(mailbox.plan.remote(memory))

    memory_fallback = ray.get(mailbox.memory_fallback.remote(run.config.train))
    try:
        with closing(RayContext(mailbox)) as context:
            return build_and_fit(run, layers, context, memory_fallback=memory_fallback, report=report)
    except OutOfMemoryError:
        if not plans or plans[-1].next(run.config.train) is None:
            raise
        ray.get(mailbox.report_out_of_memory.remote())
        raise MemoryRanOut from None


def is_lost(mailbox: Any) -> bool:
    """Return whether the driver's mailbox is lost; a worker that notices during a step fails, and all restart."""
    try:
        ray.get(mailbox.is_encoded.remote())
    except ray.exceptions.RayActorError:
        return True
    return False


def layers_from(run: ResolvedRun, mailbox: Any) -> RunLayers:
    """Return the run's layers, which the first worker encodes if missing. Raises UserError on all ranks."""
    if ray.train.get_context().get_world_rank() == 0 and not ray.get(mailbox.is_encoded.remote()):
        ray.get(mailbox.put_encoded.remote(encode(run)))
    result: EncodingResult = ray.get(mailbox.encoded.remote())
    if result.layers is None:
        raise UserError(result.error)
    return result.layers


def encode(run: ResolvedRun) -> EncodingResult:
    """Encode the run's data; return the layers, or the message of a UserError."""
    try:
        return EncodingResult(encode_layers(run))
    except UserError as error:
        return EncodingResult(error=str(error))
