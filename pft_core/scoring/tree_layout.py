"""The flat layout of a batch of trees: each prefix once, then all branches.

N tokens: the prefixes of E examples, one after another, then R branches. A token sees the earlier tokens of its own
prefix and its own branch, at the positions they would have if the branch ran alone.
"""

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
class TreeLayout:
    """Flat tokens, and the rows that attention pads. S and U are the lengths of the longest prefix and branch, K the
    number of labels in the batch, and L the most labels in one branch.

    position_N, example_N, branch_N: of each token; the branch is -1 in a prefix. branch_mask [R, 1, U, S + U]: the keys
    of its prefix and branch that a branch token sees. predictor_K: the token that predicts each label; label_rows
    arranges these by branch, and label_mask [R, 1, L, S + U] holds the keys that each sees. label_branch_K: the branch
    of each label.
    """

    ids_N: Tensor
    position_N: Tensor
    example_N: Tensor
    branch_N: Tensor
    prefixes: RaggedRows
    branches: RaggedRows
    branch_example_R: Tensor
    branch_mask: Tensor
    predictor_K: Tensor
    label_ids_K: Tensor
    label_branch_K: Tensor
    label_rows: RaggedRows
    label_mask: Tensor


def tree_layout(batch: BranchedBatch) -> TreeLayout:
    """Lay out a batch; all layers of a model share the layout."""
    prefix_E, branch_R, example_R = batch.prefix_lengths, batch.branch_lengths, batch.branch_example
    prefix_R = prefix_E[example_R]
    examples_E, branches_R = (torch.arange(len(x), device=prefix_E.device) for x in (prefix_E, branch_R))
    within_T, branch_T = _counts(branch_R), branches_R.repeat_interleave(branch_R)
    label_K = batch.label_mask.nonzero().squeeze(1)
    label_rows = ragged_rows(batch.num_labels_R, start=0)
    longest = int(prefix_E.max()), int(branch_R.max())
    return TreeLayout(
        ids_N=torch.cat([batch.prefix_ids, batch.branch_ids]),
        position_N=torch.cat([_counts(prefix_E), within_T + prefix_R[branch_T]]),
        example_N=torch.cat([examples_E.repeat_interleave(prefix_E), example_R[branch_T]]),
        branch_N=torch.cat([torch.full_like(batch.prefix_ids, -1), branch_T]),
        prefixes=ragged_rows(prefix_E, start=0),
        branches=ragged_rows(branch_R, start=len(batch.prefix_ids)),
        branch_example_R=example_R,
        branch_mask=_sees(
            prefix_R, torch.arange(longest[1], device=prefix_E.device).expand(len(branch_R), -1), longest
        ),
        predictor_K=_predictors(batch)[label_K],
        label_ids_K=batch.branch_ids[label_K],
        label_branch_K=branch_T[label_K],
        label_rows=label_rows,
        # A predictor at -1 is the prefix's last token and sees no branch key; padding sees one, as no row may be empty.
        label_mask=_sees(prefix_R, _padded(within_T[label_K] - 1, label_rows), longest),
    )


def _counts(lengths: Tensor) -> Tensor:
    """Return 0, 1, ... for each row, flat."""
    first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return torch.arange(int(lengths.sum()), device=lengths.device) - first


def _predictors(batch: BranchedBatch) -> Tensor:
    """Return the flat token that predicts each branch token [T]: the one before it, or the last one of its prefix."""
    predictors_T = torch.arange(len(batch.branch_ids), device=batch.branch_ids.device) + len(batch.prefix_ids) - 1
    starts_R = batch.branch_lengths.cumsum(0) - batch.branch_lengths
    predictors_T[starts_R] = batch.prefix_lengths.cumsum(0)[batch.branch_example] - 1
    return predictors_T


def _padded(value_K: Tensor, rows: RaggedRows) -> Tensor:
    """Return values as a matrix [B, L] with 0 past the end of a row."""
    if rows.places is None:
        return value_K.view(rows.num_rows, rows.longest)
    flat = value_K.new_zeros(rows.num_rows * rows.longest).index_copy(0, rows.places, value_K)
    return flat.view(rows.num_rows, rows.longest)


def _sees(prefix_R: Tensor, last_RL: Tensor, longest: tuple[int, int]) -> Tensor:
    """Return the mask [R, 1, L, S + U]: the whole prefix of a branch, and its own tokens up to and including `last`."""
    columns_S, columns_U = (torch.arange(n, device=prefix_R.device) for n in longest)
    own_prefix_RLS = (columns_S < prefix_R[:, None])[:, None].expand(-1, last_RL.shape[1], -1)
    return torch.cat([own_prefix_RLS, columns_U <= last_RL[:, :, None]], dim=2)[:, None]
