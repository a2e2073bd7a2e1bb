"""The small tree of a pair: a shared prefix and its branches, as token ids and label masks.

The prefix is the longest common prefix of the prompts' *token ids*. A common prefix of their texts would not do, as a
token may cross its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pft_core.data import SIDES


@dataclass(frozen=True)
class Branch:
    """One continuation of the prefix.

    input_ids [T]; label_mask [T]: True for tokens that carry loss; side: the side of its prompt; reference_logp: the
    log-probability of its labels under a reference policy, or 0 without one; stem: the index of the stem that it
    continues, or -1 if it continues the prefix.
    """

    input_ids: NDArray[np.int32]
    label_mask: NDArray[np.bool_]
    side: int
    reference_logp: float = 0.0
    stem: int = -1

    @property
    def num_labels(self) -> int:
        """Number of tokens that carry loss."""
        return int(np.count_nonzero(self.label_mask))


@dataclass(frozen=True)
class BranchedExample:
    """A small tree: the token ids of the shared prefix [S], and the branches that follow it.

    axis: the index of the example's axis in the space. stems: token ids between the prefix and some of the branches,
    for trees of three levels (see joining.py).
    Invariant: with an empty prefix, no branch starts with a label, as nothing would predict it. No stem is empty.
    """

    id: str
    prefix_ids: NDArray[np.int32]
    branches: tuple[Branch, ...]
    axis: int = 0
    stems: tuple[NDArray[np.int32], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the tree: the prefix once, each stem and branch once."""
        return len(self.prefix_ids) + sum(map(len, self.stems)) + sum(len(b.input_ids) for b in self.branches)

    @property
    def num_tokens_separate(self) -> int:
        """Number of tokens if each branch has its own copy of what comes before it."""
        stems = sum(len(self.stems[b.stem]) for b in self.branches if b.stem >= 0)
        return stems + sum(len(self.prefix_ids) + len(b.input_ids) for b in self.branches)


@dataclass(frozen=True)
class LabelCounts:
    """Facts about E examples that are known before the forward pass.

    num_labels_EB: label tokens per branch; side_B: the side of each branch's prompt; axis_E: the axis of each example.
    """

    num_labels_EB: NDArray[np.int64]
    side_B: NDArray[np.int64]
    axis_E: NDArray[np.int64]

    def per_side(self) -> NDArray[np.int64]:
        """Label tokens per example and side [E, 2]."""
        columns = [self.num_labels_EB[:, self.side_B == side].sum(axis=1) for side in SIDES]
        return np.stack(columns, axis=1)


def branched_example(
    example_id: str, prompts: Sequence[NDArray[np.int32]], answers: Sequence[NDArray[np.int32]], sides: Sequence[int]
) -> BranchedExample:
    """Build the tree from the prompt and answer ids of each branch; the labels are exactly the answer tokens."""
    shared = common_prefix_length(prompts)
    branches = []
    for prompt, answer, side in zip(prompts, answers, sides, strict=True):
        ids = np.concatenate([prompt[shared:], answer]).astype(np.int32, copy=False)
        branches.append(Branch(ids, np.arange(len(ids)) >= len(prompt) - shared, side))
    return BranchedExample(example_id, np.asarray(prompts[0][:shared], dtype=np.int32), tuple(branches))


def common_prefix_length(sequences: Sequence[NDArray[np.int32]]) -> int:
    """Return the length of the longest common prefix of integer sequences."""
    shortest = min(len(s) for s in sequences)
    equal = np.ones(shortest, dtype=bool)
    for other in sequences[1:]:
        equal &= np.asarray(sequences[0][:shortest]) == np.asarray(other[:shortest])
    return int(shortest if equal.all() else equal.argmin())


def select_sides(example: BranchedExample, sides: Sequence[int]) -> BranchedExample:
    """Return the example with only the branches of these sides, for one-sided training or an asynchronous update."""
    return replace(example, branches=tuple(b for b in example.branches if b.side in sides))


def without_first_label(branch: Branch) -> Branch:
    """Return the branch without its first label, for `mask="paper"`: the paper's trainer masks one token too many."""
    mask = branch.label_mask.copy()
    mask[mask.argmax()] = False
    return replace(branch, label_mask=mask)
