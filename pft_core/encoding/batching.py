"""Bins of whole examples by token budget, and the batch that a scorer reads.

The plan of a step is a pure function of lengths. Every rank computes all bins, so that all ranks run the same number of
bins without communication (under ZeRO, gathers are collectives).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from pft_core.encoding.examples import Branch, BranchedExample
from pft_core.errors import UserError


@dataclass(frozen=True)
class BranchedBatch:
    """E examples with M stems and R branches in total, as flat tensors; P prefix, Q stem and T branch tokens in total.

    prefix_ids [P], prefix_lengths [E], example_axis [E]; stem_ids [Q], stem_lengths [M]; branch_ids [T],
    label_mask [T], branch_lengths [R]. stem_example [M], branch_example [R]: index of the example that a stem or branch
    belongs to. branch_stem [R]: index of the stem that a branch continues, -1 for none (in training, M is 0).
    branch_side [R]: side of the branch's prompt.
    reference_R: log-probability of the branch's labels under a reference policy (0 without one).
    """

    example_ids: tuple[str, ...]
    prefix_ids: Tensor
    prefix_lengths: Tensor
    example_axis: Tensor
    stem_ids: Tensor
    stem_lengths: Tensor
    stem_example: Tensor
    branch_ids: Tensor
    label_mask: Tensor
    branch_lengths: Tensor
    branch_example: Tensor
    branch_stem: Tensor
    branch_side: Tensor
    reference_R: Tensor

    @property
    def num_branches(self) -> int:
        """Number of branches R."""
        return len(self.branch_lengths)

    @property
    def stem_lengths_R(self) -> Tensor:
        """Tokens of the stem that each branch continues [R], 0 if none."""
        return torch.cat([self.stem_lengths, self.stem_lengths.new_zeros(1)])[self.branch_stem]  # -1: the added 0

    @property
    def context_lengths_R(self) -> Tensor:
        """Tokens before each branch [R]: its prefix and stem."""
        return self.prefix_lengths[self.branch_example] + self.stem_lengths_R

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
    """Lay examples out as flat tensors without padding; a back-end pads as it needs."""
    branches = [(i, b) for i, e in enumerate(examples) for b in e.branches]
    stems = [(i, stem) for i, e in enumerate(examples) for stem in e.stems]
    first_stems = list(accumulate((len(e.stems) for e in examples), initial=0))
    return BranchedBatch(
        example_ids=tuple(e.id for e in examples),
        prefix_ids=_flat([e.prefix_ids for e in examples], torch.long),
        prefix_lengths=torch.tensor([len(e.prefix_ids) for e in examples]),
        example_axis=torch.tensor([e.axis for e in examples]),
        stem_ids=_flat([stem for _, stem in stems], torch.long),
        stem_lengths=torch.tensor([len(stem) for _, stem in stems], dtype=torch.long),
        stem_example=torch.tensor([i for i, _ in stems], dtype=torch.long),
        branch_ids=_flat([b.input_ids for _, b in branches], torch.long),
        label_mask=_flat([b.label_mask for _, b in branches], torch.bool),
        branch_lengths=torch.tensor([len(b.input_ids) for _, b in branches]),
        branch_example=torch.tensor([i for i, _ in branches]),
        branch_stem=torch.tensor([-1 if b.stem < 0 else first_stems[i] + b.stem for i, b in branches]),
        branch_side=torch.tensor([b.side for _, b in branches]),
        reference_R=torch.tensor([b.reference_logp for _, b in branches]),
    )


def _flat(arrays: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)).to(dtype) if arrays else torch.zeros(0, dtype=dtype)


def empty_example() -> BranchedExample:
    """Return an example without labels, which a rank without work runs so that it enters every collective.

    It has two branches, as objectives on pairs of answers expect an even number.
    """
    token = np.zeros(1, dtype=np.int32)
    return BranchedExample("", token, (Branch(token, np.zeros(1, dtype=bool), 0),) * 2)


def plan_bins(num_tokens: Sequence[int], *, tokens_per_microbatch: int) -> list[list[int]]:
    """Cut items, in order, into bins of at most `tokens_per_microbatch` padded tokens (longest x count).

    Items are sorted by length first, so that a bin holds similar lengths; every item is in exactly one bin.
    Raises UserError if an item is longer than the budget.
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
    """Cut items, in file order, into bins of a fixed number of items: the paper's micro-batches."""
    return [list(range(i, min(i + items_per_bin, num_items))) for i in range(0, num_items, items_per_bin)]


def deal(num_items: int, *, num_ranks: int) -> list[list[int]]:
    """Distribute the positions of a step over ranks in turn: rank r gets r, r + num_ranks, ..."""
    return [list(range(rank, num_items, num_ranks)) for rank in range(num_ranks)]
