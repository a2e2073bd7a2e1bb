"""Estimate whether the activations of a micro-batch fit into memory, so that none has to be recomputed.

Synthetic batches of two small sizes run forward through the real model, and the bytes that autograd keeps for the
backward are counted: the two counts give a fixed part and a part per token. This needs no knowledge of the
architecture.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pft_core.encoding import Branch, BranchedBatch, BranchedExample, collate
from pft_core.policies import Precision, positions_of
from pft_core.scoring import BranchScorer
from pft_core.training.memory_fallback import MemoryUse, model_too_large, out_of_memory
from pft_core.training.ranks import num_ranks
from pft_core.training.settings import TrainSettings

BYTES_PER_TRAINED_WEIGHT = 12  # a gradient and AdamW's two moments in float32; a shard of them counts as the whole
# Room for more than the activations kept for the backward: a layer's gradients while they are computed, the head's
# chunk of logits, kernel workspaces, masks (quadratic in a pair's length), and gaps between an allocator's blocks.
MARGIN = 1.25
PROBE_LENGTH = 264  # tokens of a probe's prefix and longer branch
# torch also raises plain RuntimeErrors, from its CPU allocator and from CUDA libraries.
OUT_OF_MEMORY_PHRASES = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
CGROUPS = Path("/sys/fs/cgroup")  # holds a container's own memory limit


@dataclass(frozen=True)
class KeptBytes:
    """The bytes that autograd keeps of a forward: a fixed part for any batch, and a part per token that runs."""

    fixed: float
    per_token: float

    def of(self, num_tokens: int) -> float:
        """Return the bytes kept of a forward over this many tokens."""
        return self.fixed + self.per_token * num_tokens


@dataclass(frozen=True)
class MemoryPlan:
    """The bytes that training needs besides the weights if activations are kept, and the bytes that are free."""

    needed: float
    free: float

    @property
    def fits(self) -> bool:
        """Whether the needed bytes are free."""
        return self.needed <= self.free


def plan_memory(scorer: BranchScorer, *, num_tokens: int, precision: Precision, device: torch.device) -> MemoryPlan:
    """Compare the memory that micro-batches of `num_tokens` need with the free memory, each at its worst over ranks.

    This is a collective: every rank must call it before an engine wraps the scorer, and all get the same plan. The
    order of gathers under ZeRO-3 depends on the plan, so no rank may decide alone.
    """
    trained = sum(w.numel() for w in scorer.parameters() if w.requires_grad)
    activations = measure_kept_bytes(scorer, precision=precision, device=device).of(num_tokens)
    needed = MARGIN * activations + BYTES_PER_TRAINED_WEIGHT * trained
    tightest = torch.tensor([-needed, free_bytes(device)], dtype=torch.float64, device=device)
    if num_ranks() > 1:
        dist.all_reduce(tightest, op=dist.ReduceOp.MIN)
    return MemoryPlan(-float(tightest[0]), float(tightest[1]))


def measure_kept_bytes(scorer: BranchScorer, *, precision: Precision, device: torch.device) -> KeptBytes:
    """Run two small batches forward, and split the bytes they keep into a fixed part and a part per token."""
    longest = positions_of(scorer.model.config.to_dict()) or PROBE_LENGTH
    small, large = (probe_batch(pairs, longest=longest).to(device) for pairs in (2, 4))
    small_bytes, large_bytes = (count_kept_bytes(scorer, batch, precision=precision) for batch in (small, large))
    small_tokens, large_tokens = (scorer.count_tokens(batch)[1] for batch in (small, large))
    per_token = (large_bytes - small_bytes) / (large_tokens - small_tokens)
    return KeptBytes(small_bytes - per_token * small_tokens, per_token)


def probe_batch(num_pairs: int, *, longest: int = PROBE_LENGTH) -> BranchedBatch:
    """Return a batch of pairs of unequal lengths that are mostly prefix: the shape that copies the most keys per token.

    longest: the most tokens of prefix and branch that the model has positions for. The proportions stay the same, with
    at least one token each.
    """

    def scaled(num_tokens: int) -> int:
        return max(1, num_tokens * min(longest, PROBE_LENGTH) // PROBE_LENGTH)

    branches = scaled(40), scaled(24)
    return collate([_probe_pair(prefix=scaled(224 - 32 * (i % 2)), branches=branches) for i in range(num_pairs)])


def _probe_pair(*, prefix: int, branches: tuple[int, int]) -> BranchedExample:
    # Token 0 is in every vocabulary, and only the lengths decide how many bytes are kept.
    branch = [Branch(np.zeros(n, np.int32), np.ones(n, bool), side) for side, n in enumerate(branches)]
    return BranchedExample("", np.zeros(prefix, np.int32), tuple(branch))


def count_kept_bytes(scorer: BranchScorer, batch: BranchedBatch, *, precision: Precision) -> int:
    """Return the bytes that a training forward keeps for its backward, without the weights; each storage counts once.

    The random state and the scorer's training mode are unchanged afterwards.
    """
    device = batch.branch_ids.device
    was_training = scorer.training
    kept: dict[int, int] = {}

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return saved.detach()  # an output held by its own graph would never be freed

    scorer.train()
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        saved_tensors_hooks(keep, lambda saved: saved),
    ):
        logps = scorer(batch)
    # The graph is alive up to here, so no two storages have had the same address.
    assert logps.requires_grad, "nothing to train: every weight is frozen"
    scorer.train(was_training)
    weights = {w.untyped_storage().data_ptr() for w in scorer.parameters()}
    return sum(size for address, size in kept.items() if address not in weights)


def free_bytes(device: torch.device) -> float:
    """Return the bytes that this process may still use: of its GPU, or of its share of the machine's memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # otherwise blocks that only the allocator holds count as used
        return float(torch.cuda.mem_get_info(device)[0])
    # Launchers set the number of processes of a job that share a machine.
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(float(psutil.virtual_memory().available), container_bytes()) / num_processes


def container_bytes() -> float:
    """Return the bytes that this process's container may still use, or infinity without a limit.

    The free memory that the machine reports ignores this limit.
    """
    for limit, used, stat in (  # cgroups version 2, then version 1
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            words = [(CGROUPS / name).read_text().strip() for name in (limit, used)]
            # Cached files count as used, but the kernel drops them under memory pressure.
            cached = dict(line.split() for line in (CGROUPS / stat).read_text().splitlines())
            return float(words[0]) - float(words[1]) + float(cached.get("inactive_file", 0))
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
    return float("inf")


@contextmanager
def memory_errors(use: MemoryUse, train: TrainSettings) -> Iterator[None]:
    """Raise OutOfMemoryError in place of the errors that torch and its libraries raise when memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(use, train) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch, or a library below it, raised this error because memory ran out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        p in str(error) for p in OUT_OF_MEMORY_PHRASES
    )


@contextmanager
def loading_memory_errors(device: torch.device) -> Iterator[None]:
    """Do the same as memory_errors before there is a plan: while the model is loaded and its memory use is measured."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise model_too_large(free_bytes(device)) from None
