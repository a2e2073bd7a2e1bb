"""The flat layout of a batch of trees: each prefix once, then each stem, then all branches.

N tokens: the prefixes of E examples, one after another, then M stems, then R branches. A token sees the earlier tokens
of its own prefix, stem and branch, at the positions they would have if the branch ran alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pft_core.encoding import BranchedBatch


@dataclass(frozen=True)
class RaggedRows:
    """Rows of unequal lengths inside a flat sequence, and the indices to a padded matrix [B, L] and back.

    start: where the rows begin. slots [B*L]: the flat token of each place of the matrix; past the end of a row, any
    token. places [M]: the places that hold a token, in flat order. Both are None if all rows have the same length.
    """

    num_rows: int
    longest: int
    start: int
    slots: Tensor | None
    places: Tensor | None

    def pad(self, x_HND: Tensor) -> Tensor:
        """Return these rows as [B, H, L, D]."""
        heads, _, width = x_HND.shape
        if self.slots is None:
            taken = x_HND[:, self.start : self.start + self.num_rows * self.longest]
        else:
            taken = x_HND.index_select(1, self.slots)
        return taken.reshape(heads, self.num_rows, self.longest, width).transpose(0, 1)

    def flatten(self, x_BHLD: Tensor) -> Tensor:
        """Return the rows' tokens [M, H, D] without padding."""
        x_BLHD = x_BHLD.transpose(1, 2).flatten(0, 1)
        return x_BLHD if self.places is None else x_BLHD.index_select(0, self.places)


def ragged_rows(lengths_B: Tensor, *, start: int) -> RaggedRows:
    """Describe consecutive rows of these lengths, the first of which begins at `start`."""
    longest = int(lengths_B.max())
    columns_L = torch.arange(longest, device=lengths_B.device)
    holds_BL = columns_L < lengths_B[:, None]
    if bool(holds_BL.all()):
        return RaggedRows(len(lengths_B), longest, start, None, None)
    first_B = start + lengths_B.cumsum(0) - lengths_B
    # A place past the end of its row takes the token at `start`: a finite value that no query of the row can see.
    slots_BL = torch.where(holds_BL, first_B[:, None] + columns_L, start)
    return RaggedRows(len(lengths_B), longest, start, slots_BL.flatten(), holds_BL.flatten().nonzero().squeeze(1))


@dataclass(frozen=True)
class Above:
    """Rows above others: which of them each of B rows continues [B], and how many of its tokens count [B]."""

    rows: RaggedRows
    index_B: Tensor
    length_B: Tensor

    def keys(self, key_GND: Tensor) -> Tensor:
        """Return the keys of the row that each of the B rows continues [B, G, S, D], padded."""
        return self.rows.pad(key_GND).index_select(0, self.index_B)

    def counts(self) -> Tensor:
        """Return which of these keys are tokens [B, S], not padding."""
        return torch.arange(self.rows.longest, device=self.length_B.device) < self.length_B[:, None]


@dataclass(frozen=True)
class Level:
    """The prefixes, the stems or the branches: rows that attend to what they continue and to themselves.

    mask [B, 1, U, A + U]: the keys that each token sees, of the rows above (padded, A in all) and of its own row; None
    if nothing is above, as attention is then just causal.
    """

    rows: RaggedRows
    above: tuple[Above, ...]
    mask: Tensor | None


@dataclass(frozen=True)
class TreeLayout:
    """Flat tokens, and the levels of rows that attention pads. K is the number of labels in the batch, L the most
    labels in one branch, U the length of the longest branch, and A that of the longest context, padded.

    position_N, example_N, stem_N, branch_N: of each token; stem and branch are -1 if it is in none. levels: those that
    hold tokens, from the prefixes to the branches, which are always there. predictor_K: the token that predicts each
    label; label_rows arranges these by branch, and label_mask [R, 1, L, A + U] holds the keys that each sees.
    label_branch_K: the branch of each label.
    """

    ids_N: Tensor
    position_N: Tensor
    example_N: Tensor
    stem_N: Tensor
    branch_N: Tensor
    levels: tuple[Level, ...]
    predictor_K: Tensor
    label_ids_K: Tensor
    label_branch_K: Tensor
    label_rows: RaggedRows
    label_mask: Tensor


def tree_layout(batch: BranchedBatch) -> TreeLayout:
    """Lay out a batch; all layers of a model share the layout."""
    prefix_E, stem_M, branch_R = batch.prefix_lengths, batch.stem_lengths, batch.branch_lengths
    example_P, stem_Q, branch_T = _rows(prefix_E), _rows(stem_M), _rows(branch_R)
    within_T, label_K = _counts(branch_R), batch.label_mask.nonzero().squeeze(1)
    stem_positions_Q = _counts(stem_M) + prefix_E[batch.stem_example][stem_Q]
    no_P, no_Q = torch.full_like(example_P, -1), torch.full_like(stem_Q, -1)
    levels, label_rows = _levels(batch), ragged_rows(batch.num_labels_R, start=0)
    return TreeLayout(
        ids_N=torch.cat([batch.prefix_ids, batch.stem_ids, batch.branch_ids]),
        position_N=torch.cat([_counts(prefix_E), stem_positions_Q, within_T + batch.context_lengths_R[branch_T]]),
        example_N=torch.cat([example_P, batch.stem_example[stem_Q], batch.branch_example[branch_T]]),
        stem_N=torch.cat([no_P, stem_Q, batch.branch_stem[branch_T]]),
        branch_N=torch.cat([no_P, no_Q, branch_T]),
        levels=levels,
        predictor_K=_predictors(batch)[label_K],
        label_ids_K=batch.branch_ids[label_K],
        label_branch_K=branch_T[label_K],
        label_rows=label_rows,
        # A predictor at -1, the last token before a branch, sees no key of it; padding sees one: no row may be empty.
        label_mask=_sees(levels[-1].above, _padded(within_T[label_K] - 1, label_rows), levels[-1].rows.longest),
    )


def _levels(batch: BranchedBatch) -> tuple[Level, ...]:
    """Return the levels that hold tokens. A branch without a stem gets some stem and counts none of its tokens."""
    prefixes = ragged_rows(batch.prefix_lengths, start=0)
    prefix_M, prefix_R = (batch.prefix_lengths[example] for example in (batch.stem_example, batch.branch_example))
    above = [Above(prefixes, batch.branch_example, prefix_R)]
    levels = [Level(prefixes, (), None)]
    if len(batch.stem_lengths):
        stems = ragged_rows(batch.stem_lengths, start=len(batch.prefix_ids))
        levels.append(_level(stems, [Above(prefixes, batch.stem_example, prefix_M)]))
        above.append(Above(stems, batch.branch_stem.clamp(min=0), batch.stem_lengths_R))
    branches = ragged_rows(batch.branch_lengths, start=len(batch.prefix_ids) + len(batch.stem_ids))
    levels.append(_level(branches, above))
    return tuple(level for level in levels if level.rows.longest)


def _level(rows: RaggedRows, above: Sequence[Above]) -> Level:
    """Return a level below others; those without tokens are left out."""
    held = tuple(each for each in above if each.rows.longest)
    last_BU = torch.arange(rows.longest, device=above[0].index_B.device).expand(rows.num_rows, -1)
    return Level(rows, held, _sees(held, last_BU, rows.longest))


def _rows(lengths: Tensor) -> Tensor:
    """Return the row of each token, flat."""
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)


def _counts(lengths: Tensor) -> Tensor:
    """Return 0, 1, ... for each row, flat."""
    first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return torch.arange(int(lengths.sum()), device=lengths.device) - first


def _predictors(batch: BranchedBatch) -> Tensor:
    """Return the flat token that predicts each branch token [T]: the one before it, or the last one of its context."""
    num_before = len(batch.prefix_ids) + len(batch.stem_ids)
    predictors_T = torch.arange(len(batch.branch_ids), device=batch.branch_ids.device) + num_before - 1
    starts_R = batch.branch_lengths.cumsum(0) - batch.branch_lengths
    ends_R = batch.prefix_lengths.cumsum(0)[batch.branch_example]
    if len(batch.stem_lengths):
        stem_ends_R = (len(batch.prefix_ids) + batch.stem_lengths.cumsum(0))[batch.branch_stem]
        ends_R = torch.where(batch.branch_stem < 0, ends_R, stem_ends_R)
    predictors_T[starts_R] = ends_R - 1
    return predictors_T


def _padded(value_K: Tensor, rows: RaggedRows) -> Tensor:
    """Return values as a matrix [B, L] with 0 past the end of a row."""
    if rows.places is None:
        return value_K.view(rows.num_rows, rows.longest)
    flat = value_K.new_zeros(rows.num_rows * rows.longest).index_copy(0, rows.places, value_K)
    return flat.view(rows.num_rows, rows.longest)


def _sees(above: Sequence[Above], last_BL: Tensor, longest: int) -> Tensor:
    """Return the mask [B, 1, L, A + U]: all that a row continues, and its own tokens up to and including `last`."""
    columns_U = torch.arange(longest, device=last_BL.device)
    contexts = [each.counts()[:, None].expand(-1, last_BL.shape[1], -1) for each in above]
    return torch.cat([*contexts, columns_U <= last_BL[:, :, None]], dim=2)[:, None]
