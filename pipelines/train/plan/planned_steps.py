"""The steps of a planned run: how many, and the tokens and micro-batches of each, planned as the run plans them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from pft_core.training import ExampleStore, LoopSettings, plan_phase
from pipelines.train.plan.planned_pairs import PlannedPairs
from pipelines.train.resolved_run import ResolvedRun

PLANNED_STEPS = 100  # steps whose micro-batches are planned, evenly over the run


@dataclass(frozen=True)
class PlannedSteps:
    """Figures of the steps. microbatches: of one worker and step. tokens: a shared prefix counts once if it runs once.

    num_planned: steps that the means are over.
    """

    steps: int
    pairs: int
    epochs: float
    num_planned: int
    tokens_per_step: float
    tokens_per_microbatch: float
    largest_microbatch: int
    microbatches_per_step: float

    @property
    def tokens(self) -> int:
        """The tokens of the whole run."""
        return round(self.tokens_per_step * self.steps)


def loop_settings(run: ResolvedRun, num_pairs: int, *, shares_prefix: bool) -> LoopSettings:
    """Return the settings of the loop for so many pairs, as the run derives them."""
    config = run.config
    return LoopSettings.of(
        config.train, run.objective, num_pairs=num_pairs, seed=config.seed, shares_prefix=shares_prefix
    )


def planned_steps(run: ResolvedRun, pairs: PlannedPairs, store: ExampleStore, settings: LoopSettings) -> PlannedSteps:
    """Plan steps over the whole run. store: the examples of the pairs. settings: for the pairs in the store."""
    whole = loop_settings(run, pairs.num_kept, shares_prefix=settings.shares_prefix)
    steps = evenly(settings.num_steps, PLANNED_STEPS)
    planned = [list(microbatches(step, settings, store, num_ranks=run.config.scaling.num_workers)) for step in steps]
    tokens = [num for step in planned for rank in step for num in rank]
    return PlannedSteps(
        steps=whole.num_steps,
        pairs=whole.total_pairs,
        epochs=round(whole.total_pairs / pairs.num_kept, 3),
        num_planned=len(steps),
        tokens_per_step=mean(sum(map(sum, step)) for step in planned),
        tokens_per_microbatch=mean(tokens),
        largest_microbatch=max(tokens),
        microbatches_per_step=mean(len(rank) for step in planned for rank in step),
    )


def microbatches(step: int, settings: LoopSettings, store: ExampleStore, *, num_ranks: int) -> Iterator[Sequence[int]]:
    """Yield the tokens of each micro-batch of a step, for one rank and phase after the other."""
    each = settings.objective.examples_per_pair
    indices = settings.order.step_indices(
        step, examples_per_step=settings.train.pairs_per_step * each, total_examples=settings.total_pairs * each
    )
    for sides in settings.objective.phases:
        phase = plan_phase(indices, sides, settings=settings, store=store, num_ranks=num_ranks)
        for bins in phase.bins:
            yield [sum(store.num_tokens(b, sides=sides, shares_prefix=settings.shares_prefix)) for b in bins]


def evenly(count: int, most: int) -> list[int]:
    """Return at most so many of the numbers below `count`, evenly spaced."""
    return list(range(count)) if count <= most else [i * count // most for i in range(most)]
