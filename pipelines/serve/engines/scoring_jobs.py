"""Scoring jobs, cut into parts so that generation continues between them."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pft_core.encoding import Branch, BranchedExample
from pipelines.serve.engines.serving_engine import Steering
from pipelines.serve.policies import LoadedAdapter

Scores = list[NDArray[np.float32]]


@dataclass(eq=False)
class Scoring:
    """The examples of one request. `done` is called with their scores or an error. is_over: nobody waits any longer."""

    examples: Sequence[BranchedExample]
    adapter: LoadedAdapter | None
    steering: Steering | None
    done: Callable[[Scores | BaseException], None]
    is_over: bool = False
    waiting: deque["ScoringPart"] = field(default_factory=deque)
    scores: list[Scores] = field(default_factory=list)  # of each example, part by part

    def cut(self, max_tokens: int) -> None:
        """Cut the examples into parts of at most `max_tokens` tokens, or of a single branch if that has more."""
        self.scores = [[] for _ in self.examples]
        for index, example in enumerate(self.examples):
            self.waiting += [ScoringPart(self, index, piece) for piece in _pieces(example, max_tokens)]

    def end(self, outcome: Scores | BaseException) -> None:
        """End the job and report its outcome."""
        self.is_over = True
        self.done(outcome)


@dataclass(frozen=True, eq=False)
class ScoringPart:
    """Some branches of one example of a scoring job."""

    job: Scoring
    index: int
    example: BranchedExample

    def take(self, logps: NDArray[np.float32]) -> None:
        """Add the part's scores, in the order of the parts; the job's last part ends it."""
        self.job.scores[self.index].append(logps)
        counts = [sum(map(len, parts)) for parts in self.job.scores]
        if counts == [len(example.branches) for example in self.job.examples]:
            self.job.end([np.concatenate(parts) for parts in self.job.scores])


def next_parts(jobs: Sequence[Scoring], max_tokens: int) -> list[ScoringPart]:
    """Take parts, at least one, of all jobs that have the first job's adapter and steering."""
    alike = [job for job in jobs if (job.adapter, job.steering) == (jobs[0].adapter, jobs[0].steering)]
    parts: list[ScoringPart] = []
    tokens = 0
    for job in alike:
        while job.waiting and (not parts or tokens + job.waiting[0].example.num_tokens <= max_tokens):
            parts.append(job.waiting.popleft())
            tokens += parts[-1].example.num_tokens
    return parts


def _pieces(example: BranchedExample, max_tokens: int) -> Iterator[BranchedExample]:
    """Cut an example between its branches; each piece repeats the prefix."""
    if example.num_tokens <= max_tokens:
        yield example
        return
    held: list[Branch] = []
    room = max_tokens - len(example.prefix_ids)
    for branch in example.branches:
        if held and sum(len(b.input_ids) for b in [*held, branch]) > room:
            yield replace(example, branches=tuple(held))
            held = []
        held.append(branch)
    yield replace(example, branches=tuple(held))
