"""A view of pairs as single demonstrations: each side of each pair is an example of its own, with its own step."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pft_core.data import SIDES
from pft_core.encoding import BranchedExample, LabelCounts, select_sides
from pft_core.objectives import Objective
from pft_core.training.planning import ExampleStore


def examples_for(objective: Objective, pairs: ExampleStore) -> ExampleStore:
    """Return the examples that the objective trains on: the pairs, or each side as an example of its own."""
    return Demonstrations(pairs) if objective.splits_pairs else pairs


class Demonstrations:
    """A store of pairs seen as a store of single answers: example i is side `i % 2` of pair `i // 2`."""

    def __init__(self, pairs: ExampleStore):
        self._pairs = pairs

    def __len__(self) -> int:
        return len(SIDES) * len(self._pairs)

    def label_counts(self, indices: Sequence[int]) -> LabelCounts:
        """Return the label tokens per branch, with 0 for the side that is not the example's."""
        pairs, side_E = self._pairs_and_sides(indices)
        counts = self._pairs.label_counts(pairs)
        is_shown_EB = counts.side_B == np.array(side_E, dtype=np.int64)[:, None]
        return replace(counts, num_labels_EB=np.where(is_shown_EB, counts.num_labels_EB, 0))

    def num_tokens(self, indices: Sequence[int], *, sides: Sequence[int], shares_prefix: bool) -> list[int]:
        """Return the tokens per example: its prefix and one answer, or 0 if its side does not run."""
        pairs, side_E = self._pairs_and_sides(indices)
        tokens_2E = [self._pairs.num_tokens(pairs, sides=(side,), shares_prefix=shares_prefix) for side in SIDES]
        return [tokens_2E[side][i] if side in sides else 0 for i, side in enumerate(side_E)]

    def read(self, indices: Sequence[int]) -> list[BranchedExample]:
        """Return the examples at these indices, one branch each."""
        pairs, side_E = self._pairs_and_sides(indices)
        return [select_sides(pair, (side,)) for pair, side in zip(self._pairs.read(pairs), side_E, strict=True)]

    def _pairs_and_sides(self, indices: Sequence[int]) -> tuple[list[int], list[int]]:
        pairs, sides = zip(*(divmod(i, len(SIDES)) for i in indices), strict=True) if len(indices) else ((), ())
        return list(pairs), list(sides)
