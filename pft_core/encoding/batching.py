"""Bins of whole examples by token budget, and the batch that a scorer reads.

A step's plan is a pure function of lengths: every rank computes all bins, so that all ranks run the same number of
them without a word exchanged (gathers under ZeRO are collectives).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from pft_core.encoding.examples import Branch, BranchedExample
from pft_core.errors import UserError


@dataclass(frozen=True)
class BranchedBatch:
    """E examples with R branches in all, flat. Shapes: P prefix tokens and T branch tokens in total.

    prefix_ids [P], prefix_lengths [E], example_axis [E]; branch_ids [T], label_mask [T], branch_lengths [R];
    branch_example [R] says which example a branch continues, branch_side [R] the side that its prompt asks for,
    reference_R the log-probability of its labels under a reference policy (0 where none is used).
    """

    example_ids: tuple[str, ...]
    prefix_ids: Tensor
    prefix_lengths: Tensor
    example_axis: Tensor
    branch_ids: Tensor
    label_mask: Tensor
    branch_lengths: Tensor
    branch_example: Tensor
    branch_side: Tensor
    reference_R: Tensor

    @property
    def num_branches(self) -> int:
        """The number of branches, over all examples."""
        return len(self.branch_lengths)

    @property
    def num_labels_R(self) -> Tensor:
        """Label tokens per branch [R]."""
        labels = torch.zeros(self.num_branches, dtype=torch.long, device=self.label_mask.device)
        rows = torch.repeat_interleave(torch.arange(self.num_branches, device=labels.device), self.branch_lengths)
        return labels.index_add_(0, rows, self.label_mask.long())

    def to(self, device: torch.device | str) -> "BranchedBatch":
        """Return the batch with its tensors on this device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "example_ids"}
        return replace(self, **moved)


def collate(examples: Sequence[BranchedExample]) -> BranchedBatch:
    """Lay examples out flat; no padding here, a back-end pads as it needs."""
    branches = [(i, b) for i, e in enumerate(examples) for b in e.branches]
    return BranchedBatch(
        example_ids=tuple(e.id for e in examples),
        prefix_ids=_flat([e.prefix_ids for e in examples], torch.long),
        prefix_lengths=torch.tensor([len(e.prefix_ids) for e in examples]),
        example_axis=torch.tensor([e.axis for e in examples]),
        branch_ids=_flat([b.input_ids for _, b in branches], torch.long),
        label_mask=_flat([b.label_mask for _, b in branches], torch.bool),
        branch_lengths=torch.tensor([len(b.input_ids) for _, b in branches]),
        branch_example=torch.tensor([i for i, _ in branches]),
        branch_side=torch.tensor([b.side for _, b in branches]),
        reference_R=torch.tensor([b.reference_logp for _, b in branches]),
    )


def _flat(arrays: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)).to(dtype)


def empty_example() -> BranchedExample:
    """An example without labels: what a rank with nothing to do runs, so that it enters every collective.

    It has two branches, as objectives on pairs of answers expect an even number.
    """
    token = np.zeros(1, dtype=np.int32)
    return BranchedExample("", token, (Branch(token, np.zeros(1, dtype=bool), 0),) * 2)


def plan_bins(num_tokens: Sequence[int], *, tokens_per_microbatch: int) -> list[list[int]]:
    """Cut items, in order, into bins of at most `tokens_per_microbatch` padded tokens (longest x count).

    Items are sorted by length first, so that a bin holds like lengths; every item is in exactly one bin.
    Raises UserError for an item that is longer than the budget.
    """
    bins: list[list[int]] = []
    for item in sorted(range(len(num_tokens)), key=lambda i: (-num_tokens[i], i)):
        if num_tokens[item] > tokens_per_microbatch:
            raise UserError(
                f"train.tokens_per_microbatch={tokens_per_microbatch} is smaller than a pair of {num_tokens[item]} "
                f"tokens: raise it to {num_tokens[item]}, or lower encoding.max_length to reject such pairs"
            )
        if bins and num_tokens[bins[-1][0]] * (len(bins[-1]) + 1) <= tokens_per_microbatch:
            bins[-1].append(item)
        else:
            bins.append([item])
    return bins


def plan_fixed(num_items: int, *, items_per_bin: int) -> list[list[int]]:
    """Cut items in file order into bins of a fixed count: the paper's micro-batches."""
    return [list(range(i, min(i + items_per_bin, num_items))) for i in range(0, num_items, items_per_bin)]


def deal(num_items: int, *, num_ranks: int) -> list[list[int]]:
    """Deal the positions of a step to ranks in turn: rank r gets r, r + num_ranks, ..."""
    return [list(range(rank, num_items, num_ranks)) for rank in range(num_ranks)]
