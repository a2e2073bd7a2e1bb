"""How a run goes on with less memory. Light: a driver that computes nothing reads what its workers say of theirs."""

from dataclasses import dataclass
from enum import IntEnum

from pft_core.errors import UserError
from pft_core.training.settings import TrainSettings


class OutOfMemoryError(UserError):
    """A forward, a backward or an update found no memory; what the last checkpoint holds is whole."""


class MemoryFallback(IntEnum):
    """What a run does to spare memory; each step does what the ones before it do.

    None changes what an update is, but for dropout, which smaller micro-batches draw anew.
    """

    PLANNED = 0  # what the settings say
    RECOMPUTED = 1  # activations are computed again in the backward
    HALVED = 2  # half as many tokens run at once


@dataclass(frozen=True)
class MemoryUse:
    """What a run expects to need beside the weights, and what was free on its tightest rank, in bytes.

    tokens: how many run at once at most, and how many the longest pair has.
    """

    memory_fallback: MemoryFallback
    needed: float
    free: float
    tokens_at_once: int
    longest_pair_tokens: int

    @property
    def is_tight(self) -> bool:
        """Whether a worker that was killed without a word was likely killed for its memory."""
        return self.needed > self.free / 2

    def next(self, train: TrainSettings) -> MemoryFallback | None:
        """The next step down, where the settings leave it open."""
        if train.gradient_checkpointing != "auto" or self.memory_fallback == MemoryFallback.HALVED:
            return None
        if self.memory_fallback == MemoryFallback.PLANNED:
            return MemoryFallback.RECOMPUTED
        # Means over micro-batches depend on how a step is cut; those over the whole step do not.
        is_open = train.pairs_per_microbatch is None and self.longest_pair_tokens <= train.tokens_per_microbatch // 2
        return MemoryFallback.HALVED if is_open else None

    def __str__(self) -> str:
        return (
            f"up to {self.tokens_at_once} tokens at once need about {self.needed / 1e9:.3g} GB beside the weights, "
            f"{self.free / 1e9:.3g} GB were free"
        )


STEPS_DOWN = {
    MemoryFallback.RECOMPUTED: "with activations computed again in the backward",
    MemoryFallback.HALVED: "with half as many tokens at once",
}


def going_on(use: MemoryUse, memory_fallback: MemoryFallback) -> str:
    """Say in one line that a run goes on, and how."""
    return f"out of memory: {use}; the run goes on from its last checkpoint {STEPS_DOWN[memory_fallback]}"


def out_of_memory(use: MemoryUse, train: TrainSettings) -> OutOfMemoryError:
    """The error of a run that has no step down left: what it needed, what there was, what to set."""
    ways = []
    if train.gradient_checkpointing is False:
        ways.append("set train.gradient_checkpointing=auto")
    if train.pairs_per_microbatch is not None:
        ways.append(f"lower train.pairs_per_microbatch={train.pairs_per_microbatch}")
    elif use.longest_pair_tokens < use.tokens_at_once:
        fewer = max(use.tokens_at_once // 2, use.longest_pair_tokens)
        ways.append(
            f"lower train.tokens_per_microbatch to {fewer} (the longest pair has {use.longest_pair_tokens} tokens)"
        )
    else:
        ways.append("prepare shorter pairs with encoding.max_length")
    return OutOfMemoryError(f"out of memory: {use}: {', '.join(ways)}, or give each worker more memory")


def model_too_large(free: float) -> OutOfMemoryError:
    """The error of a run whose model leaves no room for a step, whatever is set of steps; free: bytes."""
    return OutOfMemoryError(
        f"out of memory before the first step: beside the model {free / 1e9:.3g} GB are free: take a smaller model, "
        "run fewer workers on a machine (scaling.num_workers), or give each worker more memory"
    )
