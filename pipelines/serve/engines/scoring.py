"""What is to be scored, cut into parts, between which texts go on being written."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pft_core.encoding import Branch, BranchedExample
from pipelines.serve.engines.engine import Steering
from pipelines.serve.policies import LoadedAdapter

Scores = list[NDArray[np.float32]]


@dataclass(eq=False)
class Scoring:
    """Examples of one request; `done` is told their scores, or why there are none. is_over: nobody waits any more."""

    examples: Sequence[BranchedExample]
    adapter: LoadedAdapter | None
    steering: Steering | None
    done: Callable[[Scores | BaseException], None]
    is_over: bool = False
    waiting: deque["ScoringPart"] = field(default_factory=deque)
    found: list[Scores] = field(default_factory=list)  # of each example, part by part

    def cut(self, most_tokens: int) -> None:
        """Cut the examples into parts of at most so many tokens, where a single branch has no more."""
        self.found = [[] for _ in self.examples]
        for index, example in enumerate(self.examples):
            self.waiting += [ScoringPart(self, index, piece) for piece in _pieces(example, most_tokens)]

    def end(self, outcome: Scores | BaseException) -> None:
        """Tell how it ended."""
        self.is_over = True
        self.done(outcome)


@dataclass(frozen=True, eq=False)
class ScoringPart:
    """Branches of one example of a scoring."""

    of: Scoring
    index: int
    example: BranchedExample

    def take(self, logps: NDArray[np.float32]) -> None:
        """Take in the scores; parts of an example come in their order, the last of a scoring ends it."""
        self.of.found[self.index].append(logps)
        found = [sum(map(len, parts)) for parts in self.of.found]
        if found == [len(example.branches) for example in self.of.examples]:
            self.of.end([np.concatenate(parts) for parts in self.of.found])


def next_parts(jobs: Sequence[Scoring], most_tokens: int) -> list[ScoringPart]:
    """Take parts of what the first job has in common with others: adapter and direction. At least one is taken."""
    alike = [job for job in jobs if (job.adapter, job.steering) == (jobs[0].adapter, jobs[0].steering)]
    parts: list[ScoringPart] = []
    tokens = 0
    for job in alike:
        while job.waiting and (not parts or tokens + job.waiting[0].example.num_tokens <= most_tokens):
            parts.append(job.waiting.popleft())
            tokens += parts[-1].example.num_tokens
    return parts


def _pieces(example: BranchedExample, most_tokens: int) -> Iterator[BranchedExample]:
    """Cut an example between its branches; each piece has the prefix again."""
    if example.num_tokens <= most_tokens:
        yield example
        return
    held: list[Branch] = []
    room = most_tokens - len(example.prefix_ids)
    for branch in example.branches:
        if held and sum(len(b.input_ids) for b in [*held, branch]) > room:
            yield replace(example, branches=tuple(held))
            held = []
        held.append(branch)
    yield replace(example, branches=tuple(held))
