"""Trainings that take turns: each runs in a process of its own, one step at a time."""

import multiprocessing
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from benchmarks import harness

Facts = dict[str, Any]
Pause = Callable[[Facts], None]  # reports the facts of a step, and waits for the next turn


class Trainee:
    """A training in a new process, which pauses before its first step and after every step.

    facts: what it reported before its first step.
    """

    def __init__(self, name: str, train: Callable[..., None], *arguments: Any):
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=run_in_turns, args=(theirs, train, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        self.facts, self._cpu_s = self._receive()

    def step(self) -> Facts:
        """Let the training run one step; return what it reports, and the step's wall-clock and CPU seconds."""
        started, cpu_before = time.perf_counter(), self._cpu_s
        self._pipe.send("step")
        facts, self._cpu_s = self._receive()
        return facts | {"seconds": time.perf_counter() - started, "cpu_seconds": self._cpu_s - cpu_before}

    def stop(self) -> None:
        """End the training and its process."""
        self._process.terminate()
        self._process.join()

    def _receive(self) -> tuple[Facts, float]:
        try:
            facts, cpu_s = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.name}: the training ended without a report; its error is above") from None
        return facts, cpu_s


def run_in_turns(pipe: Connection, train: Callable[..., None], *arguments: Any) -> None:
    """Entry point of a trainee's process."""

    def pause(facts: Facts) -> None:
        pipe.send((facts, time.process_time()))
        pipe.recv()

    train(pause, *arguments)


def take_turns(trainees: Mapping[str, Trainee], *, rounds: int, limit_s: float) -> dict[str, list[Facts]]:
    """Let every training run one step per round, after a round for warm-up; return the facts by round, warm-up first.

    limit_s: wall-clock seconds after which no further round starts; at least two rounds follow the warm-up.
    """
    begun = time.monotonic()
    steps: dict[str, list[Facts]] = {name: [] for name in trainees}
    for number in range(rounds + 1):
        for name, trainee in trainees.items():
            steps[name].append(trainee.step())
        shown = ", ".join(f"{name} {facts[-1]['seconds']:.1f} s" for name, facts in steps.items())
        harness.say(f"step {number or 'for warm-up'}: {shown}")
        if number >= 2 and time.monotonic() - begun > limit_s:
            break
    return steps
