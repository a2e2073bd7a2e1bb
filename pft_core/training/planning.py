"""What each rank runs at each step: a pure function of the seed, the step and the lengths, read one step ahead.

Nothing here depends on weights, so a background thread plans, reads and collates while the model computes.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pft_core.encoding import (
    BranchedBatch,
    BranchedExample,
    LabelCounts,
    collate,
    deal,
    empty_example,
    plan_bins,
    plan_fixed,
    select_sides,
)
from pft_core.objectives import Objective
from pft_core.training.order import DataOrder
from pft_core.training.settings import TrainSettings

T = TypeVar("T")
STEPS_AHEAD = 2


class ExampleStore(Protocol):
    """Encoded examples by index; counts come without reading rows (see EncodedLayer)."""

    def __len__(self) -> int: ...
    def label_counts(self, indices: Sequence[int]) -> LabelCounts:
        """Return the number of label tokens of these examples, by side."""

    def num_tokens(self, indices: Sequence[int], *, sides: Sequence[int], shares_prefix: bool) -> list[int]:
        """Return the number of tokens that each of these examples runs."""

    def read(self, indices: Sequence[int]) -> list[BranchedExample]:
        """Return these examples, encoded."""


@dataclass(frozen=True)
class LoopSettings:
    """Everything that decides the sequence of updates: the settings, and what follows from them and the data.

    total_pairs: over all epochs. order: of the store's examples, which are two a pair where the objective takes pairs
    apart. train.pairs_per_microbatch: None cuts a step by tokens_per_microbatch and normalises over the step; a number
    cuts by count and normalises per micro-batch, as the paper's code does. Steps are optimizer steps; schedule_steps:
    where the lr reaches 0. shares_prefix: whether the prefix of a pair counts once against the token budget (see
    BranchScorer).
    """

    train: TrainSettings
    objective: Objective
    order: DataOrder
    total_pairs: int
    schedule_steps: int
    seed: int
    shares_prefix: bool = False

    @staticmethod
    def of(
        train: TrainSettings, objective: Objective, *, num_pairs: int, seed: int, shares_prefix: bool
    ) -> "LoopSettings":
        """Settle what follows: the order of `num_pairs` pairs, the length of the run, a schedule as long."""
        total = train.total_pairs(num_pairs)
        order = DataOrder(num_pairs * objective.examples_per_pair, seed)
        steps = math.ceil(total / train.pairs_per_step)
        return LoopSettings(train, objective, order, total, steps, seed, shares_prefix)

    @property
    def num_steps(self) -> int:
        """The number of optimizer steps of the run."""
        return math.ceil(self.total_pairs / self.train.pairs_per_step)


@dataclass(frozen=True)
class Phase:
    """One update of a step, planned for every rank: example indices per rank and bin, and the denominators [K] of
    each bin (equal for all bins unless normalisation is per micro-batch)."""

    sides: tuple[int, ...]
    bins: list[list[list[int]]]
    denominators: list[list[NDArray[np.float64]]]


@dataclass(frozen=True)
class Update:
    """One rank's part of an update, in memory: batches, their denominators [K], and those of the whole step [K]."""

    sides: tuple[int, ...]
    batches: list[BranchedBatch]
    denominators: list[NDArray[np.float64]]
    whole_step: NDArray[np.float64]


def step_updates(step: int, *, settings: LoopSettings, store: ExampleStore, rank: int, num_ranks: int) -> list[Update]:
    """Plan and read what a rank runs at a step: one update, or one per side when the objective is asynchronous."""
    indices = settings.order.step_indices(
        step,
        examples_per_step=settings.train.pairs_per_step * settings.objective.examples_per_pair,
        total_examples=settings.total_pairs * settings.objective.examples_per_pair,
    )
    whole = settings.objective.denominators(store.label_counts(indices))
    updates = []
    for sides in settings.objective.phases:
        phase = plan_phase(indices, sides, settings=settings, store=store, num_ranks=num_ranks)
        batches = [read_batch(store, items, sides) for items in phase.bins[rank]]
        updates.append(Update(sides, batches, phase.denominators[rank], whole))
    return updates


def read_ahead(make: Callable[[int], T], steps: Iterable[int]) -> Iterator[tuple[int, T]]:
    """Yield (step, make(step)) in order, while a thread makes the next ones."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as executor:
        waiting: deque[tuple[int, Future[T]]] = deque()
        for step in steps:
            waiting.append((step, executor.submit(make, step)))
            if len(waiting) > STEPS_AHEAD:
                ready, made = waiting.popleft()
                yield ready, made.result()
        for ready, made in waiting:
            yield ready, made.result()


def refuse_pairs_over_budget(settings: LoopSettings, store: ExampleStore) -> None:
    """Say before the first step that the longest pair fits no bin. Raises UserError."""
    if settings.train.pairs_per_microbatch is None:
        plan_bins([longest_pair(settings, store)], tokens_per_microbatch=settings.train.tokens_per_microbatch)


def longest_pair(settings: LoopSettings, store: ExampleStore) -> int:
    """Return the tokens of the longest pair, of the sides that run together."""
    return max(
        max(store.num_tokens(range(len(store)), sides=sides, shares_prefix=settings.shares_prefix))
        for sides in settings.objective.phases
    )


def largest_bin(settings: LoopSettings, store: ExampleStore, *, num_ranks: int) -> int:
    """Return how many tokens one forward runs at most."""
    longest = longest_pair(settings, store) * settings.objective.examples_per_pair
    if settings.train.pairs_per_microbatch is not None:
        return longest * settings.train.pairs_per_microbatch
    return min(settings.train.tokens_per_microbatch, longest * math.ceil(settings.train.pairs_per_step / num_ranks))


def plan_phase(
    indices: Sequence[int], sides: tuple[int, ...], *, settings: LoopSettings, store: ExampleStore, num_ranks: int
) -> Phase:
    """Plan one update for all ranks from lengths alone; each rank gets the same number of bins (some may be empty)."""
    cut = _cut_by_tokens if settings.train.pairs_per_microbatch is None else _cut_by_count
    bins = cut(indices, sides, settings=settings, store=store, num_ranks=num_ranks)
    most = max(len(rank_bins) for rank_bins in bins)
    bins = [rank_bins + [[]] * (most - len(rank_bins)) for rank_bins in bins]
    whole = settings.objective.denominators(store.label_counts(indices))
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
        lengths = store.num_tokens(mine, sides=sides, shares_prefix=settings.shares_prefix)
        planned = plan_bins(lengths, tokens_per_microbatch=settings.train.tokens_per_microbatch)
        bins.append([[mine[i] for i in items] for items in planned])
    return bins


def _cut_by_count(
    indices: Sequence[int], sides: tuple[int, ...], *, settings: LoopSettings, store: ExampleStore, num_ranks: int
) -> list[list[list[int]]]:
    """Cut into micro-batches first, and deal these to ranks: their means depend on the cut, so ranks must not."""
    assert settings.train.pairs_per_microbatch is not None
    items_per_bin = settings.train.pairs_per_microbatch * settings.objective.examples_per_pair
    planned = plan_fixed(len(indices), items_per_bin=items_per_bin)
    return [[[indices[i] for i in planned[b]] for b in own] for own in deal(len(planned), num_ranks=num_ranks)]


def bin_denominators(
    items: Sequence[int], whole: NDArray[np.float64], *, settings: LoopSettings, store: ExampleStore
) -> NDArray[np.float64]:
    """The whole step's denominators; or a micro-batch's own, times the micro-batches of a full step (the paper)."""
    if settings.train.pairs_per_microbatch is None:
        return whole
    per_step = settings.train.pairs_per_step / settings.train.pairs_per_microbatch
    return per_step * settings.objective.denominators(store.label_counts(items))


def read_batch(store: ExampleStore, indices: Sequence[int], sides: Sequence[int]) -> BranchedBatch:
    # An empty bin still runs a forward without labels: gathers under ZeRO-3 are collectives.
    return collate([select_sides(e, sides) for e in store.read(indices)] or [empty_example()])
