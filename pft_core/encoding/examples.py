"""The small tree that a pair becomes: a shared prefix and its branches, as token ids and label masks.

The prefix is the longest common *token-id* prefix of the prompts: strings would not do, as merges cross boundaries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pft_core.data import SIDES


@dataclass(frozen=True)
class Branch:
    """One continuation of the prefix: token ids [T], label mask [T] (True where the token carries loss), the side that
    its prompt asks for, and the log-probability of its labels under a reference policy, where one is used."""

    input_ids: NDArray[np.int32]
    label_mask: NDArray[np.bool_]
    side: int
    reference_logp: float = 0.0

    @property
    def num_labels(self) -> int:
        """The number of tokens that count in the loss."""
        return int(np.count_nonzero(self.label_mask))


@dataclass(frozen=True)
class BranchedExample:
    """A small tree: token ids of the shared prefix [S] and the branches that follow it; axis: its place in the space.

    Invariant: with an empty prefix no branch starts with a label, as nothing would predict it.
    """

    id: str
    prefix_ids: NDArray[np.int32]
    branches: tuple[Branch, ...]
    axis: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the tree: prefix once, each branch once."""
        return len(self.prefix_ids) + sum(len(b.input_ids) for b in self.branches)

    @property
    def num_tokens_separate(self) -> int:
        """Tokens when each branch is run with its own copy of the prefix."""
        return sum(len(self.prefix_ids) + len(b.input_ids) for b in self.branches)


@dataclass(frozen=True)
class LabelCounts:
    """What is known of E examples before a forward: label tokens per branch [E, B], the side that each branch is asked
    under [B], and the axis of each example [E]."""

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
    """Build the tree from prompt and answer ids of each branch: labels are exactly the answer tokens."""
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
    """Keep only the branches of these sides (one-sided training, or one phase of the asynchronous update)."""
    return replace(example, branches=tuple(b for b in example.branches if b.side in sides))


def without_first_label(branch: Branch) -> Branch:
    """Drop the first label: `mask="paper"` (the released trainer's mask is one token too long)."""
    mask = branch.label_mask.copy()
    mask[mask.argmax()] = False
    return replace(branch, label_mask=mask)
