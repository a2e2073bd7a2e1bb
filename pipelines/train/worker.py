"""What runs on every training worker: build the policy, then `pft_core.loop.fit`, reporting through Ray Train.

`build_and_fit` knows nothing of Ray, so a bare run (tests, torchrun) and a Ray run are the same code.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from torch import Tensor

from pft_core.encoding import EncodedLayer
from pft_core.errors import UserError
from pft_core.objectives import build_objective
from pft_core.policies import (
    Precision,
    add_lora,
    checkpoint_activations,
    load_base,
    load_tokenizer,
    refuse_foreign_tokenizer,
    save_adapter,
    save_full,
)
from pft_core.scoring import BranchScorer
from pft_core.training import (
    CheckpointError,
    ExampleStore,
    FitResult,
    LoopSettings,
    NonFiniteError,
    ReferencedStore,
    TrainContext,
    build_engine,
    examples_for,
    fit,
    largest_bin,
    plan_memory,
    reference_file,
    reference_logps,
)
from pipelines.config import RunConfig
from pipelines.console import console
from pipelines.train.resolved_run import Layers, ResolvedRun

MAILBOX_LIMIT_S = 30.0


@dataclass(frozen=True)
class Payload:
    """All a worker needs of a resolved run: what the driver holds beyond it does not travel."""

    config: RunConfig
    axes: tuple[str, ...]
    layers: Layers

    @staticmethod
    def of(run: ResolvedRun, layers: Layers) -> "Payload":
        return Payload(run.config, run.axes, layers)


class Mailbox:
    """An actor that carries metrics from rank 0 to the driver: the step path neither waits nor touches a tracker.

    Only a checkpoint waits until the driver has written the metrics of the steps it holds: killed after it, a run
    never repeats those steps.
    """

    def __init__(self) -> None:
        self._items: list[tuple[int, dict[str, float]]] = []
        self._changed = asyncio.Condition()

    async def put(self, step: int, metrics: dict[str, float]) -> None:
        async with self._changed:
            self._items.append((step, metrics))
            self._changed.notify_all()

    async def take(self, *, num_written: int, wait_s: float) -> list[tuple[int, dict[str, float]]]:
        """Forget the first `num_written` items, which the driver has written; return the rest, once there are any."""
        async with self._changed:
            del self._items[:num_written]
            self._changed.notify_all()
            await self._until(lambda: bool(self._items), wait_s)
            return list(self._items)

    async def written(self, *, wait_s: float) -> None:
        """Wait until the driver has written everything, or for `wait_s` seconds."""
        async with self._changed:
            await self._until(lambda: not self._items, wait_s)

    async def _until(self, condition: Callable[[], bool], wait_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._changed.wait_for(condition)


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
        return Path(tempfile.mkdtemp(prefix=f"pft-checkpoint-{step}-"))

    def commit(self, folder: Path, metrics: dict[str, float]) -> None:
        if self.rank == 0:
            ray.get(self._mailbox.written.remote(wait_s=MAILBOX_LIMIT_S))
        saved = ray.train.Checkpoint.from_directory(str(folder))
        ray.train.report({"step": self._step, **metrics}, saved, delete_local_checkpoint_after_upload=True)

    def latest_checkpoint(self) -> Path | None:
        """Return the newest reported checkpoint; `mend_snapshot` listed whole ones only, and loading checks again."""
        saved = ray.train.get_checkpoint()
        return None if saved is None else Path(self._open.enter_context(saved.as_directory()))


def train_worker(inputs: dict[str, Any]) -> dict[str, Any]:
    """Entry point on a Ray Train worker. A user's mistake is returned, not raised: Ray would retry it in vain."""
    try:
        result = build_and_fit(inputs["payload"], RayContext(inputs["mailbox"]))
    except (UserError, NonFiniteError, CheckpointError) as error:
        return {"error": str(error)}
    return {"steps": result.steps, "pairs": result.pairs, "resumed_from": result.resumed_from}


def build_and_fit(payload: Payload, context: TrainContext) -> FitResult:
    """Load model and data, wrap the scorer into the engine, train."""
    config = payload.config
    torch.set_num_threads(config.scaling.threads_per_worker)
    layers = payload.layers
    store: ExampleStore = EncodedLayer(Path(layers.train))
    validation: ExampleStore | None = EncodedLayer(Path(layers.validation)) if layers.validation else None
    tokenizer = load_tokenizer(str(config.model))
    model = build_model(config, context.device)
    refuse_foreign_tokenizer(model, tokenizer)
    scorer = BranchScorer(model, backend=config.train.attention_backend)
    objective = build_objective(
        config.train, axes=payload.axes, reports_displacement=config.train.diagnostics_every > 0
    )
    settings = LoopSettings.of(
        config.train, objective, num_pairs=len(store), seed=config.seed, shares_prefix=scorer.shares_prefix
    )
    if config.train.gradient_checkpointing == "auto":
        num_tokens = largest_bin(settings, examples_for(objective, store), num_ranks=context.world_size)
        checkpoint_where_memory_is_short(scorer, num_tokens, precision=config.train.precision, context=context)
    if objective.uses_reference:
        referenced = partial(with_references, scorer=scorer, config=config, device=context.device)
        store = referenced(store, Path(layers.train))
        validation = validation and referenced(validation, Path(str(layers.validation)))
    engine = build_engine(scorer, config.engine, config.train, device=context.device)

    def save_policy(folder: Path, state: dict[str, Tensor], steps_done: int) -> None:
        if config.lora is None:
            save_full(model, tokenizer, state, folder)
        else:
            # The first step of a warm-up has a learning rate of zero: lora_B is still zero after it.
            save_adapter(model, state, folder, updated=steps_done > 1 or config.train.warmup_steps == 0)

    store = examples_for(objective, store)
    return fit(settings, store=store, engine=engine, context=context, save_policy=save_policy, validation=validation)


def build_model(config: RunConfig, device: torch.device) -> Any:
    """Load the base and, unless it is fully fine-tuned, add the adapter, its first weights drawn from the seed."""
    base = load_base(
        str(config.model),
        # Weights that are trained stay float32; a frozen base may be rounded.
        precision=config.train.precision if config.lora else "fp32",
        gradient_checkpointing=config.train.gradient_checkpointing is True,
        device=device,
    )
    if config.lora is None:
        return base
    return add_lora(base, config.lora, seed=config.seed)


def checkpoint_where_memory_is_short(
    scorer: BranchScorer, num_tokens: int, *, precision: Precision, context: TrainContext
) -> None:
    """Compute activations twice if those of a bin of `num_tokens` do not fit; every rank decides alike."""
    plan = plan_memory(scorer, num_tokens=num_tokens, precision=precision, device=context.device)
    if not plan.fits:
        checkpoint_activations(scorer.model)
    if context.rank == 0:
        console.print(
            f"activation checkpointing {'off' if plan.fits else 'on'}: up to {num_tokens} tokens at once need "
            f"{plan.needed / 1e9:.3g} GB beside the weights, {plan.free / 1e9:.3g} GB are free"
        )


def with_references(
    store: ExampleStore, layer: Path, *, scorer: BranchScorer, config: RunConfig, device: torch.device
) -> ReferencedStore:
    """Give every branch its log-probability under the policy before training, from disk where it is known."""
    precision = config.train.precision
    logps_EB = reference_logps(
        store,
        scorer,
        file=reference_file(layer, base=str(config.model), precision=precision),
        tokens_per_batch=config.train.tokens_per_microbatch,
        precision=precision,
        device=device,
    )
    return ReferencedStore(store, logps_EB)
