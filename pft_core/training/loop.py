"""fit(): the training loop. A TrainContext gives it its rank and a way to report, so the same code runs in a single
process, under torchrun and under Ray Train.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from pft_core.objectives import SIDE_NAMES, Objective
from pft_core.training import checkpoint
from pft_core.training.diagnostics import gradient_cosine
from pft_core.training.engines import Engine, NonFiniteError, TorchEngine
from pft_core.training.planning import (
    ExampleStore,
    LoopSettings,
    Update,
    plan_phase,
    read_ahead,
    read_batch,
    refuse_pairs_over_budget,
    step_updates,
)
from pft_core.training.progress import Stage

SHOWN = 3  # examples that an error names


class TrainContext(Protocol):
    """The environment of a loop: its rank, its device, and how to report metrics and to store and find checkpoints."""

    rank: int
    world_size: int
    device: torch.device
    stage: Stage

    def say(self, text: str) -> None:
        """Pass a message to the user. Only rank 0 calls it."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Report the metrics of a step. Only rank 0 calls it; it must not block."""

    def checkpoint_folder(self, step: int) -> Path:
        """Return an empty folder for this rank to save into; ranks may share one."""

    def commit(self, folder: Path, metrics: dict[str, float]) -> None:
        """Publish a complete checkpoint; every rank calls it."""

    def latest_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint, or None."""


@dataclass(frozen=True)
class FitResult:
    """Steps and pairs done over the whole run, and the step that the run was resumed from (None: the start)."""

    steps: int
    pairs: int
    resumed_from: int | None


@dataclass(frozen=True)
class BinsOutcome:
    """The result of an update's bins. sums_K: loss sums over all ranks. losses: the loss of each of this rank's bins,
    as it entered the backward. num_tokens: the tokens of the pairs. num_tokens_run: the tokens that ran through the
    layers, padding included. Token counts are over all ranks."""

    sums_K: Tensor
    losses: list[float]
    num_tokens: int
    num_tokens_run: int


@dataclass(frozen=True)
class StepOutcome:
    """The result of a step. terms: the mean loss per objective term over the step. Token counts are those of
    BinsOutcome, over all updates."""

    terms: dict[str, float]
    grad_norm: float
    num_tokens: int
    num_tokens_run: int


def fit(
    settings: LoopSettings,
    *,
    store: ExampleStore,
    engine: Engine,
    context: TrainContext,
    save_policy: Callable[[Path, dict[str, Tensor], int], None],
    validation: ExampleStore | None = None,
) -> FitResult:
    """Train from the newest checkpoint, or from the start, to the last step.

    save_policy(folder, full trainable weights, steps done) writes and checks the policy; rank 0 calls it for every
    checkpoint. Raises NonFiniteError, naming the step and the examples, before a bad gradient reaches the weights, and
    UserError if a pair exceeds the token budget.
    """
    refuse_pairs_over_budget(settings, store)
    resumed_from = resume(engine, context)
    started, grad_norm = time.perf_counter(), None
    read = partial(step_updates, settings=settings, store=store, rank=context.rank, num_ranks=context.world_size)
    with context.stage("train", settings.num_steps) as advance:
        for step, updates in read_ahead(read, range(resumed_from or 0, settings.num_steps)):
            conflict = diagnose(step, updates, settings=settings, engine=engine)
            seed_dropout(settings.seed, step, context.rank)
            try:
                outcome = train_step(step, updates, settings=settings, engine=engine, context=context)
            except NonFiniteError as error:
                raise NonFiniteError(f"{place_of(step, settings, grad_norm)}: {error}", error.example_ids) from None
            grad_norm = outcome.grad_norm
            metrics = step_metrics(step, outcome, settings, context, seconds=time.perf_counter() - started) | conflict
            if is_due(step, settings) and validation is not None:
                metrics |= validate(settings, store=validation, engine=engine, context=context)
            # Logged before the checkpoint: a run that resumes from it does not repeat this step or log its metrics.
            if context.rank == 0:
                context.log(step + 1, metrics)
            advance(step + 1, metrics)
            if is_due(step, settings):
                save(step, settings, engine=engine, context=context, save_policy=save_policy, metrics=metrics)
            started = time.perf_counter()
    return FitResult(settings.num_steps, settings.total_pairs, resumed_from)


def resume(engine: Engine, context: TrainContext) -> int | None:
    """Load the newest complete checkpoint into the engine; return its number of steps, or None without a checkpoint."""
    folder = context.latest_checkpoint()
    if folder is None:
        return None
    steps_done = int(checkpoint.restore(folder, engine=engine)["steps_done"])
    if context.rank == 0:
        context.say(f"continuing from the checkpoint of step {steps_done}")
    return steps_done


def save(
    step: int,
    settings: LoopSettings,
    *,
    engine: Engine,
    context: TrainContext,
    save_policy: Callable[[Path, dict[str, Tensor], int], None],
    metrics: dict[str, float],
) -> None:
    """Write weights, optimizer state and the policy into one verified checkpoint, then publish it."""
    folder = context.checkpoint_folder(step + 1)
    state = engine.gathered_state()
    pairs_done = min((step + 1) * settings.train.pairs_per_step, settings.total_pairs)
    checkpoint.save(
        folder,
        engine=engine,
        progress={"steps_done": step + 1, "pairs_done": pairs_done},
        rank=context.rank,
        world_size=context.world_size,
        write_policy=lambda policy: save_policy(policy, state, step + 1),
    )
    context.commit(folder, metrics)
    if context.rank == 0:
        validated = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name.startswith("val_"))
        context.say(f"checkpoint of step {step + 1} saved{f', {validated}' if validated else ''}")


def is_due(step: int, settings: LoopSettings) -> bool:
    """Return whether a checkpoint follows this step, with validation if there is validation data."""
    done = step + 1
    periods = (settings.train.checkpoint_every, settings.train.validate_every)
    return done == settings.num_steps or any(p and done % p == 0 for p in periods)


def lr_at(step: int, settings: LoopSettings) -> float:
    """Return the learning rate of a step (0-based): linear warm-up from 0, then linear or cosine decay to 0."""
    if step < settings.train.warmup_steps:
        return settings.train.lr * step / settings.train.warmup_steps
    decay_steps = max(1, settings.schedule_steps - settings.train.warmup_steps)
    done = (step - settings.train.warmup_steps) / decay_steps
    factor = 1.0 - done if settings.train.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return settings.train.lr * max(0.0, factor)


def place_of(step: int, settings: LoopSettings, last_grad_norm: float | None) -> str:
    """Name a step with its learning rate and, if it is known, the gradient norm of the step before."""
    norm = "" if last_grad_norm is None else f", grad_norm of the step before {last_grad_norm:.4g}"
    return f"step {step + 1} (train.lr={settings.train.lr:g}, at this step {lr_at(step, settings):.4g}{norm})"


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seed torch from (seed, step, rank), so that dropout resumes bitwise without generator state in a checkpoint."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def diagnose(step: int, updates: Sequence[Update], *, settings: LoopSettings, engine: Engine) -> dict[str, float]:
    """Return the cosine between the sides' gradients every `diagnostics_every` steps, else {} (torch engine only)."""
    if not settings.train.diagnostics_every or step % settings.train.diagnostics_every:
        return {}
    assert isinstance(engine, TorchEngine), "partitioned gradients have no cosine: the config must refuse this"
    cosine = gradient_cosine(updates, objective=settings.objective, engine=engine)
    return {} if cosine is None else {"gradient_cosine": cosine}


def train_step(
    step: int, updates: Sequence[Update], *, settings: LoopSettings, engine: Engine, context: TrainContext
) -> StepOutcome:
    """Run one step of `pairs_per_step` pairs: one update, or one per side if the objective is asynchronous."""
    objective = settings.objective
    terms: dict[str, float] = {}
    done = []
    for update in updates:
        done.append(run_bins(update, objective=objective, engine=engine, context=context))
        terms |= term_means(objective, done[-1].sums_K, update.whole_step, update.sides)
        grad_norm = engine.step(lr_at(step, settings))
    return StepOutcome(terms, grad_norm, sum(d.num_tokens for d in done), sum(d.num_tokens_run for d in done))


def run_bins(update: Update, *, objective: Objective, engine: Engine, context: TrainContext) -> BinsOutcome:
    """Run forward and backward over this rank's bins. Raises NonFiniteError if a loss is not finite."""
    sums_K = torch.zeros(len(objective.terms), device=context.device, dtype=torch.float64)
    tokens = [0, 0]
    losses: list[Tensor] = []
    for i, (batch, denominators_K) in enumerate(zip(update.batches, update.denominators, strict=True)):
        tokens = [t + n for t, n in zip(tokens, engine.scorer.count_tokens(batch), strict=True)]
        on_device = batch.to(context.device)
        bin_sums_K = objective.sums(engine(on_device), on_device)
        loss = objective.loss(bin_sums_K, denominators_K)
        engine.backward(loss, is_last=i == len(update.batches) - 1)
        sums_K += bin_sums_K.detach().double()
        losses.append(loss.detach())
    # Read all losses once, after the last bin: on a GPU, reading each would wait for the device.
    values = torch.stack(losses).tolist()
    bad = [batch for batch, value in zip(update.batches, values, strict=True) if not math.isfinite(value)]
    bad_ids = [example_id for batch in bad for example_id in batch.example_ids]
    totals = all_reduce_sum(torch.cat([sums_K, torch.tensor(tokens, device=context.device)]))
    if not torch.isfinite(totals).all():
        examples = gather(bad_ids)
        more = f" and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
        shown = ", ".join(examples[:SHOWN]) + more
        raise NonFiniteError(f"the loss is not finite; examples {shown}; this update changed no weight", examples)
    return BinsOutcome(totals[:-2], values, int(totals[-2]), int(totals[-1]))


@torch.no_grad()
def validate(settings: LoopSettings, *, store: ExampleStore, engine: Engine, context: TrainContext) -> dict[str, float]:
    """Return the mean loss per term over a whole store, including sides that are not trained, and their weighted sum
    `val_loss`."""
    objective, indices = settings.objective, list(range(len(store)))
    totals = objective.denominators(store.label_counts(indices))
    sums_K = torch.zeros(len(objective.terms), device=context.device, dtype=torch.float64)
    phase = plan_phase(indices, objective.reported_sides, settings=settings, store=store, num_ranks=context.world_size)
    engine.scorer.eval()
    bins = phase.bins[context.rank]
    with context.stage("validate", len(bins)) as advance:
        for number, bin_indices in enumerate(bins, start=1):
            batch = read_batch(store, bin_indices, phase.sides).to(context.device)
            sums_K += objective.sums(engine(batch), batch).double()
            advance(number)
    engine.scorer.train()
    sums_K = all_reduce_sum(sums_K)
    means = {f"val_{name}": value for name, value in term_means(objective, sums_K, totals, phase.sides).items()}
    return means | {"val_loss": float(objective.loss(sums_K, totals))}


def term_means(
    objective: Objective, sums_K: Tensor, totals_K: NDArray[np.float64], sides: Sequence[int]
) -> dict[str, float]:
    """Return the mean loss, by name, of the terms that belong to these sides or to both."""
    chosen = [(k, term) for k, term in enumerate(objective.terms) if term.side is None or term.side in sides]
    return {term.name: float(sums_K[k]) / totals_K[k] for k, term in chosen if totals_K[k] > 0}


def step_metrics(
    step: int, outcome: StepOutcome, settings: LoopSettings, context: TrainContext, *, seconds: float
) -> dict[str, float]:
    """Return the metrics of a step: losses, gradient norm before clipping, lr, rates over all ranks (tokens of the
    pairs, without padding), the share of padding among the tokens that ran, and peak memory."""
    pairs = min((step + 1) * settings.train.pairs_per_step, settings.total_pairs) - step * settings.train.pairs_per_step
    return (
        outcome.terms
        | gap(outcome.terms)
        | {
            "grad_norm": outcome.grad_norm,
            "lr": lr_at(step, settings),
            "pairs_per_s": pairs / seconds,
            "tokens_per_s": outcome.num_tokens / seconds,
            "padding_share": 1 - outcome.num_tokens / outcome.num_tokens_run,
            "peak_memory_mb": peak_memory_mb(context.device),
        }
    )


def gap(terms: Mapping[str, float]) -> dict[str, float]:
    """Return the loss of the first side minus the loss of the second, or {} if one of them is missing."""
    first, second = (terms.get(f"loss_{name}") for name in SIDE_NAMES)
    return {} if first is None or second is None else {"gap": first - second}


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of this rank: of the device's allocator on CUDA, of the resident set on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum a tensor in place over all ranks and return it; a single process returns it unchanged."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def gather(values: list[Any]) -> list[Any]:
    """Concatenate the lists of all ranks."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return values
    parts: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, values)
    return [v for part in parts for v in part]
