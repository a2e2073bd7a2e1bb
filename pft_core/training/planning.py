"""Plans what each rank runs at each step: a pure function of the seed, the step and the lengths.

Plans do not depend on weights, so a background thread plans, reads and collates ahead while the model computes.
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
    """Encoded examples by index; counting tokens does not read rows (see EncodedLayer)."""

    def __len__(self) -> int: ...
    def label_counts(self, indices: Sequence[int]) -> LabelCounts:
        """Return the label tokens of these examples by branch."""

    def num_tokens(self, indices: Sequence[int], *, sides: Sequence[int], shares_prefix: bool) -> list[int]:
        """Return the tokens of each example that run for these sides."""

    def read(self, indices: Sequence[int]) -> list[BranchedExample]:
        """Return the examples at these indices."""


@dataclass(frozen=True)
class LoopSettings:
    """Everything that determines the sequence of updates: the settings, and values derived from them and the data.

    total_pairs: over all epochs. order: that of the store's examples, two per pair if the objective splits pairs.
    schedule_steps: the optimizer step at which the lr reaches 0. shares_prefix: whether the prefix of a pair counts
    once against the token budget (see BranchScorer).

    train.pairs_per_microbatch: None cuts a step by tokens_per_microbatch and normalizes over the step; a number cuts it
    by count and normalizes per micro-batch, as the paper's code does.
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
        """Derive the order of `num_pairs` pairs, the length of the run, and a schedule of the same length."""
        total = train.total_pairs(num_pairs)
        order = DataOrder(num_pairs * objective.examples_per_pair, seed)
        steps = math.ceil(total / train.pairs_per_step)
        return LoopSettings(train, objective, order, total, steps, seed, shares_prefix)

    @property
    def num_steps(self) -> int:
        """The optimizer steps of the run."""
        return math.ceil(self.total_pairs / self.train.pairs_per_step)


@dataclass(frozen=True)
class Phase:
    """One update of a step, planned for all ranks: the example indices of each rank and bin, and the denominators [K]
    of each bin, which are the same for all bins unless normalization is per micro-batch."""

    sides: tuple[int, ...]
    bins: list[list[list[int]]]
    denominators: list[list[NDArray[np.float64]]]


@dataclass(frozen=True)
class Update:
    """One rank's share of an update, in memory: batches, their denominators [K], and those of the whole step [K]."""

    sides: tuple[int, ...]
    batches: list[BranchedBatch]
    denominators: list[NDArray[np.float64]]
    whole_step: NDArray[np.float64]


def step_updates(step: int, *, settings: LoopSettings, store: ExampleStore, rank: int, num_ranks: int) -> list[Update]:
    """Plan and read a rank's share of a step: one update, or one per side if the objective is asynchronous."""
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
    """Yield (step, make(step)) in order, while a background thread makes the next ones."""
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
    """Raise UserError before the first step if the longest pair does not fit into a bin."""
    if settings.train.pairs_per_microbatch is None:
        plan_bins([longest_pair(settings, store)], tokens_per_microbatch=settings.train.tokens_per_microbatch)


def longest_pair(settings: LoopSettings, store: ExampleStore) -> int:
    """Return the tokens of the longest pair, counting the sides that run together."""
    return max(
        max(store.num_tokens(range(len(store)), sides=sides, shares_prefix=settings.shares_prefix))
        for sides in settings.objective.phases
    )


def largest_bin(settings: LoopSettings, store: ExampleStore, *, num_ranks: int) -> int:
    """Return the most tokens that one forward runs."""
    longest = longest_pair(settings, store) * settings.objective.examples_per_pair
    if settings.train.pairs_per_microbatch is not None:
        return longest * settings.train.pairs_per_microbatch
    return min(settings.train.tokens_per_microbatch, longest * math.ceil(settings.train.pairs_per_step / num_ranks))


def plan_phase(
    indices: Sequence[int], sides: tuple[int, ...], *, settings: LoopSettings, store: ExampleStore, num_ranks: int
) -> Phase:
    """Plan one update for all ranks from lengths alone; each rank gets the same number of bins, some of them empty."""
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
    """Deal pairs to ranks, and cut each share into bins of similar lengths within the token budget."""
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
    """Cut pairs into micro-batches and deal these to ranks, so that their means do not depend on the rank count."""
    assert settings.train.pairs_per_microbatch is not None
    items_per_bin = settings.train.pairs_per_microbatch * settings.objective.examples_per_pair
    planned = plan_fixed(len(indices), items_per_bin=items_per_bin)
    return [[[indices[i] for i in planned[b]] for b in own] for own in deal(len(planned), num_ranks=num_ranks)]


def bin_denominators(
    items: Sequence[int], whole: NDArray[np.float64], *, settings: LoopSettings, store: ExampleStore
) -> NDArray[np.float64]:
    """Return the whole step's denominators; with pairs_per_microbatch, those of the micro-batch times the number of
    micro-batches in a full step, as in the paper."""
    if settings.train.pairs_per_microbatch is None:
        return whole
    per_step = settings.train.pairs_per_step / settings.train.pairs_per_microbatch
    return per_step * settings.objective.denominators(store.label_counts(items))


def read_batch(store: ExampleStore, indices: Sequence[int], sides: Sequence[int]) -> BranchedBatch:
    """Return these examples as a batch of these sides; an empty bin gives a batch without labels."""
    # An empty bin must still run a forward: gathers under ZeRO-3 are collectives.
    return collate([select_sides(e, sides) for e in store.read(indices)] or [empty_example()])
