"""fit(): the one training loop. It is told its rank and how to report by a TrainContext, so the same code runs bare,
under torchrun and under Ray Train.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from pft_core import checkpoint
from pft_core.batching import BranchedBatch, collate, deal, empty_example, plan_bins, plan_fixed
from pft_core.encoding import BranchedExample, select_sides
from pft_core.engine import Engine, NonFiniteError
from pft_core.objectives import Objective
from pft_core.order import Order


class ExampleStore(Protocol):
    """Encoded examples by index; counts come without reading rows (see EncodedLayer)."""

    def __len__(self) -> int: ...
    def num_labels(self, indices: Sequence[int]) -> NDArray[np.int64]: ...
    def num_tokens(self, indices: Sequence[int], *, sides: Sequence[int]) -> list[int]: ...
    def read(self, indices: Sequence[int]) -> list[BranchedExample]: ...


class TrainContext(Protocol):
    """Where a loop runs: its place among the ranks, its device, and how to report and to find what was saved."""

    rank: int
    world_size: int
    device: torch.device

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Hand over the metrics of a step (rank 0 calls it); must not block."""

    def checkpoint_folder(self, step: int) -> Path:
        """Return this rank's empty folder to save into; ranks may share it or not."""

    def commit(self, folder: Path, metrics: dict[str, float]) -> None:
        """Publish a whole checkpoint; every rank calls it."""

    def latest_checkpoint(self) -> Path | None:
        """Return the newest whole checkpoint, or None."""


@dataclass(frozen=True)
class LoopSettings:
    """Everything that decides the sequence of updates.

    total_pairs: positions of the whole run, over all epochs. pairs_per_microbatch: None cuts a step by
    tokens_per_microbatch and normalises over the step; a number cuts by count and normalises per micro-batch, as the
    paper's code does. Steps are optimizer steps, a period of 0 means never; schedule_steps: where the lr reaches 0.
    """

    objective: Objective
    order: Order
    total_pairs: int
    pairs_per_step: int
    tokens_per_microbatch: int
    pairs_per_microbatch: int | None
    lr: float
    schedule: Literal["linear", "cosine"]
    warmup_steps: int
    schedule_steps: int
    seed: int
    checkpoint_every: int = 0
    validate_every: int = 0

    @property
    def num_steps(self) -> int:
        return math.ceil(self.total_pairs / self.pairs_per_step)


@dataclass(frozen=True)
class FitResult:
    """steps and pairs done over the whole run, and the step a checkpoint was resumed from (None: from the start)."""

    steps: int
    pairs: int
    resumed_from: int | None


@dataclass(frozen=True)
class Phase:
    """One update of a step, planned for every rank: example indices per rank and bin, and the denominators [K] of
    each bin (equal for all bins unless normalisation is per micro-batch)."""

    sides: tuple[int, ...]
    bins: list[list[list[int]]]
    denominators: list[list[NDArray[np.float64]]]


@dataclass(frozen=True)
class StepOutcome:
    """terms: mean loss per objective term over the step; bin_losses: this rank's bins, each as it entered backward."""

    terms: dict[str, float]
    grad_norm: float
    bin_losses: list[float]
    num_tokens: int


def fit(
    settings: LoopSettings,
    *,
    store: ExampleStore,
    engine: Engine,
    context: TrainContext,
    save_policy: Callable[[Path, dict[str, Tensor], int], None],
    validation: ExampleStore | None = None,
) -> FitResult:
    """Run the updates that are still to do and return what was done.

    save_policy(folder, whole trainable weights, steps done) writes and checks the policy; rank 0 calls it inside
    every checkpoint. Raises NonFiniteError, naming step and examples, before a bad gradient reaches the weights, and
    UserError for a pair that exceeds the token budget.
    """
    refuse_pairs_over_budget(settings, store)
    resumed_from = resume(engine, context)
    for step in range(resumed_from or 0, settings.num_steps):
        started = time.perf_counter()
        seed_dropout(settings.seed, step, context.rank)
        outcome = train_step(step, settings=settings, store=store, engine=engine, context=context)
        metrics = step_metrics(step, outcome, settings, context, seconds=time.perf_counter() - started)
        due = is_due(step, settings)
        if due and validation is not None:
            metrics |= validate(settings, store=validation, engine=engine, context=context)
        # Logged before the checkpoint: a run resumed from it never repeats this step, nor its metrics.
        if context.rank == 0:
            context.log(step + 1, metrics)
        if due:
            save(step, settings, engine=engine, context=context, save_policy=save_policy, metrics=metrics)
    return FitResult(settings.num_steps, settings.total_pairs, resumed_from)


def refuse_pairs_over_budget(settings: LoopSettings, store: ExampleStore) -> None:
    """Say before the first step that the longest pair fits no bin. Raises UserError."""
    if settings.pairs_per_microbatch is None:
        for sides in settings.objective.phases:
            longest = max(store.num_tokens(range(len(store)), sides=sides))
            plan_bins([longest], tokens_per_microbatch=settings.tokens_per_microbatch)


def resume(engine: Engine, context: TrainContext) -> int | None:
    """Load the newest whole checkpoint into the engine; return the number of steps it holds."""
    folder = context.latest_checkpoint()
    return None if folder is None else int(checkpoint.restore(folder, engine=engine)["steps_done"])


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
    pairs_done = min((step + 1) * settings.pairs_per_step, settings.total_pairs)
    checkpoint.save(
        folder,
        engine=engine,
        progress={"steps_done": step + 1, "pairs_done": pairs_done},
        rank=context.rank,
        world_size=context.world_size,
        write_policy=lambda policy: save_policy(policy, state, step + 1),
    )
    context.commit(folder, metrics)


def is_due(step: int, settings: LoopSettings) -> bool:
    """Whether a checkpoint (with validation, where there is validation data) follows this step."""
    done = step + 1
    periods = (settings.checkpoint_every, settings.validate_every)
    return done == settings.num_steps or any(p and done % p == 0 for p in periods)


def lr_at(step: int, settings: LoopSettings) -> float:
    """Learning rate of a step (0-based): linear warm-up from 0, then linear or cosine decay to 0."""
    if step < settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    decay_steps = max(1, settings.schedule_steps - settings.warmup_steps)
    done = (step - settings.warmup_steps) / decay_steps
    factor = 1.0 - done if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return settings.lr * max(0.0, factor)


def seed_dropout(seed: int, step: int, rank: int) -> None:
    # Dropout drawn from (seed, step, rank) needs no generator state in a checkpoint to resume bitwise.
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def plan_phase(
    indices: Sequence[int], sides: tuple[int, ...], *, settings: LoopSettings, store: ExampleStore, num_ranks: int
) -> Phase:
    """Plan one update for all ranks from lengths alone; each rank gets the same number of bins (some may be empty)."""
    cut = _cut_by_tokens if settings.pairs_per_microbatch is None else _cut_by_count
    bins = cut(indices, sides, settings=settings, store=store, num_ranks=num_ranks)
    most = max(len(rank_bins) for rank_bins in bins)
    bins = [rank_bins + [[]] * (most - len(rank_bins)) for rank_bins in bins]
    whole = settings.objective.denominators(store.num_labels(indices))
    return Phase(
        sides, bins, [[bin_denominators(items, whole, settings=settings, store=store) for items in own] for own in bins]
    )


def _cut_by_tokens(
    indices: Sequence[int], sides: tuple[int, ...], *, settings: LoopSettings, store: ExampleStore, num_ranks: int
) -> list[list[list[int]]]:
    """Deal pairs to ranks, and cut each share into bins of like lengths within the token budget."""
    bins = []
    for share in deal(len(indices), num_ranks=num_ranks):
        mine = [indices[i] for i in share]
        lengths = store.num_tokens(mine, sides=sides)
        planned = plan_bins(lengths, tokens_per_microbatch=settings.tokens_per_microbatch)
        bins.append([[mine[i] for i in items] for items in planned])
    return bins


def _cut_by_count(
    indices: Sequence[int], sides: tuple[int, ...], *, settings: LoopSettings, store: ExampleStore, num_ranks: int
) -> list[list[list[int]]]:
    """Cut into micro-batches first, and deal these to ranks: their means depend on the cut, so ranks must not."""
    assert settings.pairs_per_microbatch is not None
    planned = plan_fixed(len(indices), items_per_bin=settings.pairs_per_microbatch)
    return [[[indices[i] for i in planned[b]] for b in own] for own in deal(len(planned), num_ranks=num_ranks)]


def bin_denominators(
    items: Sequence[int], whole: NDArray[np.float64], *, settings: LoopSettings, store: ExampleStore
) -> NDArray[np.float64]:
    """The whole step's denominators; or a micro-batch's own, times the micro-batches of a full step (the paper)."""
    if settings.pairs_per_microbatch is None:
        return whole
    per_step = settings.pairs_per_step / settings.pairs_per_microbatch
    return per_step * settings.objective.denominators(store.num_labels(items))


def train_step(
    step: int, *, settings: LoopSettings, store: ExampleStore, engine: Engine, context: TrainContext
) -> StepOutcome:
    """One step of `pairs_per_step` pairs: one update, or one per side when the objective is asynchronous."""
    indices = settings.order.step_indices(
        step, pairs_per_step=settings.pairs_per_step, total_pairs=settings.total_pairs
    )
    terms: dict[str, float] = {}
    bin_losses: list[float] = []
    num_tokens = 0
    for sides in settings.objective.phases:
        phase = plan_phase(indices, sides, settings=settings, store=store, num_ranks=context.world_size)
        sums_K, losses = run_bins(step, phase, settings=settings, store=store, engine=engine, context=context)
        totals = settings.objective.denominators(store.num_labels(indices))
        terms |= term_means(settings.objective, sums_K, totals, sides)
        grad_norm = engine.step(lr_at(step, settings))
        bin_losses += losses
        num_tokens += sum(store.num_tokens(indices, sides=sides))
    return StepOutcome(terms, grad_norm, bin_losses, num_tokens)


def run_bins(
    step: int, phase: Phase, *, settings: LoopSettings, store: ExampleStore, engine: Engine, context: TrainContext
) -> tuple[Tensor, list[float]]:
    """Forward and backward over this rank's bins; return loss sums [K] over all ranks and this rank's bin losses."""
    mine = list(zip(phase.bins[context.rank], phase.denominators[context.rank], strict=True))
    sums_K = torch.zeros(len(settings.objective.terms), device=context.device, dtype=torch.float64)
    losses, bad_ids = [], []
    for i, (indices, denominators_K) in enumerate(mine):
        batch = read_batch(store, indices, phase.sides).to(context.device)
        bin_sums_K = settings.objective.sums(engine(batch), batch)
        loss = settings.objective.loss(bin_sums_K, denominators_K)
        engine.backward(loss, is_last=i == len(mine) - 1)
        sums_K += bin_sums_K.detach().double()
        losses.append(loss.detach().item())
        bad_ids += [] if math.isfinite(losses[-1]) else list(batch.example_ids)
    sums_K = all_reduce_sum(sums_K)
    if not torch.isfinite(sums_K).all():
        raise NonFiniteError(
            f"step {step + 1}: the loss is not finite; examples {gather(bad_ids)}; no weight was changed"
        )
    return sums_K, losses


def read_batch(store: ExampleStore, indices: Sequence[int], sides: Sequence[int]) -> BranchedBatch:
    # An empty bin still runs a forward without labels: gathers under ZeRO-3 are collectives.
    return collate([select_sides(e, sides) for e in store.read(indices)] or [empty_example()])


@torch.no_grad()
def validate(settings: LoopSettings, *, store: ExampleStore, engine: Engine, context: TrainContext) -> dict[str, float]:
    """Mean loss per term, and their weighted sum `val_loss`, over a whole validation store."""
    objective, indices = settings.objective, list(range(len(store)))
    totals = objective.denominators(store.num_labels(indices))
    sums_K = torch.zeros(len(objective.terms), device=context.device, dtype=torch.float64)
    phase = plan_phase(indices, objective.trained_sides, settings=settings, store=store, num_ranks=context.world_size)
    engine.scorer.eval()
    for bin_indices in phase.bins[context.rank]:
        batch = read_batch(store, bin_indices, phase.sides).to(context.device)
        sums_K += objective.sums(engine(batch), batch).double()
    engine.scorer.train()
    sums_K = all_reduce_sum(sums_K)
    means = {f"val_{name}": value for name, value in term_means(objective, sums_K, totals, phase.sides).items()}
    return means | {"val_loss": float(objective.loss(sums_K, totals))}


def term_means(
    objective: Objective, sums_K: Tensor, totals_K: NDArray[np.float64], sides: Sequence[int]
) -> dict[str, float]:
    """Mean loss of the terms that these sides have trained, by name."""
    names = objective.terms if len(objective.terms) == 1 else [objective.terms[side] for side in sides]
    positions = [objective.terms.index(name) for name in names]
    return {n: float(sums_K[k]) / totals_K[k] for n, k in zip(names, positions, strict=True) if totals_K[k] > 0}


def step_metrics(
    step: int, outcome: StepOutcome, settings: LoopSettings, context: TrainContext, *, seconds: float
) -> dict[str, float]:
    """What is reported of a step: losses, gradient norm before clipping, lr, rates over all ranks, peak memory."""
    pairs = min((step + 1) * settings.pairs_per_step, settings.total_pairs) - step * settings.pairs_per_step
    return outcome.terms | {
        "grad_norm": outcome.grad_norm,
        "lr": lr_at(step, settings),
        "pairs_per_s": pairs / seconds,
        "tokens_per_s": outcome.num_tokens / seconds,
        "peak_memory_mb": peak_memory_mb(context.device),
    }


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this rank: the device's allocator on CUDA, the process's resident set on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks (a single process returns it as it is)."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def gather(values: list[Any]) -> list[Any]:
    """Concatenate lists over all ranks."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return values
    parts: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, values)
    return [v for part in parts for v in part]
