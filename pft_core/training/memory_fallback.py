"""How a run continues with less memory. Imports no torch, because a driver reads its workers' memory reports."""

from dataclasses import dataclass
from enum import IntEnum

from pft_core.errors import UserError
from pft_core.training.settings import TrainSettings


class OutOfMemoryError(UserError):
    """Raised if a forward, a backward or an update runs out of memory; the last checkpoint remains valid."""


class MemoryFallback(IntEnum):
    """The measures by which a run saves memory; each includes the ones before it.

    None of them changes an update, except through dropout, which smaller micro-batches draw differently.
    """

    PLANNED = 0  # as the settings say
    RECOMPUTED = 1  # the backward recomputes activations
    HALVED = 2  # half as many tokens run at once


@dataclass(frozen=True)
class MemoryUse:
    """The memory that a run expects to need besides the weights, and the free memory on its tightest rank, in bytes.

    tokens_at_once: the most tokens that run at once. longest_pair_tokens: the tokens of the longest pair.
    """

    memory_fallback: MemoryFallback
    needed: float
    free: float
    tokens_at_once: int
    longest_pair_tokens: int

    @property
    def is_tight(self) -> bool:
        """Whether a worker that was killed without a message was probably killed for its memory."""
        return self.needed > self.free / 2

    def next(self, train: TrainSettings) -> MemoryFallback | None:
        """Return the next memory fallback, or None if the settings allow no other."""
        if train.gradient_checkpointing != "auto" or self.memory_fallback == MemoryFallback.HALVED:
            return None
        if self.memory_fallback == MemoryFallback.PLANNED:
            return MemoryFallback.RECOMPUTED
        # Means over micro-batches depend on how a step is cut; means over the whole step do not.
        can_halve = train.pairs_per_microbatch is None and self.longest_pair_tokens <= train.tokens_per_microbatch // 2
        return MemoryFallback.HALVED if can_halve else None

    def __str__(self) -> str:
        return (
            f"up to {self.tokens_at_once} tokens at once need about {self.needed / 1e9:.3g} GB besides the weights, "
            f"and {self.free / 1e9:.3g} GB were free"
        )


FALLBACK_PHRASES = {
    MemoryFallback.RECOMPUTED: "with activations recomputed in the backward",
    MemoryFallback.HALVED: "with half as many tokens at once",
}


def going_on(use: MemoryUse, memory_fallback: MemoryFallback) -> str:
    """Return one line that says how a run continues after it ran out of memory."""
    return f"out of memory: {use}; the run continues from its last checkpoint {FALLBACK_PHRASES[memory_fallback]}"


def out_of_memory(use: MemoryUse, train: TrainSettings) -> OutOfMemoryError:
    """Return the error of a run with no memory fallback left: what it needed, what was free, and what to set."""
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
        ways.append("lower encoding.max_length to train on shorter pairs")
    return OutOfMemoryError(f"out of memory: {use}: {', '.join(ways)}, or give each worker more memory")


def model_too_large(free: float) -> OutOfMemoryError:
    """Return the error of a run whose model leaves no room for any step. free: bytes."""
    return OutOfMemoryError(
        f"out of memory before the first step: only {free / 1e9:.3g} GB are free besides the model: use a smaller "
        "model, run fewer workers per machine (scaling.num_workers), or give each worker more memory"
    )
