"""Shared-prefix attention: a batch of trees through an ordinary decoder, each prefix computed once.

Tokens lie flat [1, N]: the prefixes of all examples, then all branches. Linear layers so see every token once and no
padding; only attention knows the trees. A token sees the tokens before it of its own prefix and its own branch, at
the positions that they would have if each branch were run alone.

Two back-ends, equal to running each branch alone: `split` (two dense attentions: prefixes causally, branches over
prefix and own keys; any device) and `flex` (one block-sparse kernel; its backward exists on CUDA only).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pft_core.batching import BranchedBatch

SharedAttention = Literal["split", "flex"]

# Architectures whose attention modules hand our layout through and whose layers attend in full; tests hold each.
SUPPORTED_MODEL_TYPES = ("llama", "qwen2", "qwen3")
LAYOUT = "tree_layout"  # the keyword that carries a layout through a decoder to its attention layers


@dataclass(frozen=True)
class RaggedRows:
    """Rows of unequal lengths inside a flat sequence, and the way to a padded matrix [B, L] and back.

    start: where the rows begin. slots [B*L]: the flat token of each place, any token where a row has ended.
    places [M]: the places that hold a token, in flat order. Both None where all rows are equally long.
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
    """Describe rows of these lengths that follow one another from `start` on."""
    longest = int(lengths_B.max())
    columns_L = torch.arange(longest, device=lengths_B.device)
    holds_BL = columns_L < lengths_B[:, None]
    if bool(holds_BL.all()):
        return RaggedRows(len(lengths_B), longest, start, None, None)
    first_B = start + lengths_B.cumsum(0) - lengths_B
    # A place beyond its row takes the row's first slot: finite values that no query of the row can see.
    slots_BL = torch.where(holds_BL, first_B[:, None] + columns_L, start)
    return RaggedRows(len(lengths_B), longest, start, slots_BL.flatten(), holds_BL.flatten().nonzero().squeeze(1))


@dataclass(frozen=True)
class TreeLayout:
    """Where the tokens of a batch lie: per flat token its position, example and branch (-1 in a prefix), each [N]."""

    position_N: Tensor
    example_N: Tensor
    branch_N: Tensor
    prefixes: RaggedRows
    branches: RaggedRows
    branch_example_R: Tensor
    branch_mask: Tensor  # [R, 1, U, S + U]: which keys of prefix and own branch a branch's token sees
    block_mask: BlockMask | None = None


def tree_layout(batch: BranchedBatch, attention: SharedAttention) -> TreeLayout:
    """Lay out a batch for one of the back-ends; the same for all layers of a model."""
    prefix_E, branch_R, example_R = batch.prefix_lengths, batch.branch_lengths, batch.branch_example
    examples_E = torch.arange(len(prefix_E), device=prefix_E.device)
    branches_R = torch.arange(len(branch_R), device=prefix_E.device)
    layout = TreeLayout(
        position_N=torch.cat([_counts(prefix_E), _counts(branch_R) + prefix_E[example_R].repeat_interleave(branch_R)]),
        example_N=torch.cat([examples_E.repeat_interleave(prefix_E), example_R.repeat_interleave(branch_R)]),
        branch_N=torch.cat([torch.full_like(batch.prefix_ids, -1), branches_R.repeat_interleave(branch_R)]),
        prefixes=ragged_rows(prefix_E, start=0),
        branches=ragged_rows(branch_R, start=len(batch.prefix_ids)),
        branch_example_R=example_R,
        branch_mask=_branch_mask(prefix_E[example_R], prefix_E, branch_R),
    )
    return layout if attention == "split" else _with_block_mask(layout)


def _counts(lengths: Tensor) -> Tensor:
    """Return 0, 1, ... anew for each row, flat."""
    first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return torch.arange(int(lengths.sum()), device=lengths.device) - first


def _branch_mask(own_prefix_R: Tensor, prefix_E: Tensor, branch_R: Tensor) -> Tensor:
    columns_S = torch.arange(int(prefix_E.max()), device=prefix_E.device)
    columns_U = torch.arange(int(branch_R.max()), device=prefix_E.device)
    sees_prefix_RUS = (columns_S < own_prefix_R[:, None])[:, None].expand(-1, len(columns_U), -1)
    sees_own_RUU = (columns_U <= columns_U[:, None]).expand(len(branch_R), -1, -1)
    return torch.cat([sees_prefix_RUS, sees_own_RUU], dim=2)[:, None]


def split_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **carried: Any,
) -> tuple[Tensor, None]:
    """Attend over trees with two dense attentions. query [1, H, N, D], key and value [1, G, N, D] -> [1, N, H, D].

    Prefixes are padded at their right, where causality hides the padding; branches need a mask.
    """
    layout: TreeLayout = carried[LAYOUT]
    prefixes, branches = layout.prefixes, layout.branches
    q, k, v = query[0], key[0], value[0]
    keys, values, outputs = branches.pad(k), branches.pad(v), []
    if prefixes.longest:
        prefix_keys, prefix_values = prefixes.pad(k), prefixes.pad(v)
        out = _sdpa(prefixes.pad(q), prefix_keys, prefix_values, scale=scaling, dropout_p=dropout, is_causal=True)
        outputs.append(prefixes.flatten(out))
        keys = torch.cat([prefix_keys.index_select(0, layout.branch_example_R), keys], dim=2)
        values = torch.cat([prefix_values.index_select(0, layout.branch_example_R), values], dim=2)
    out = _sdpa(branches.pad(q), keys, values, scale=scaling, dropout_p=dropout, attn_mask=layout.branch_mask)
    outputs.append(branches.flatten(out))
    return torch.cat(outputs)[None], None


def _sdpa(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    if query.is_cuda and query.shape[1] != key.shape[1]:
        # With a mask, only CUDA's slow kernel takes fewer key heads than query heads.
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=query.shape[1] != key.shape[1], **options)


def flex_tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **carried: Any,
) -> tuple[Tensor, None]:
    """Attend over trees with FlexAttention: blocks that no token may see are skipped. Shapes as `split_attention`."""
    assert dropout == 0.0, "FlexAttention has no dropout"
    layout: TreeLayout = carried[LAYOUT]
    out = _flex(query.device.type)(query, key, value, block_mask=layout.block_mask, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


@cache
def _flex(device_type: str) -> Callable[..., Tensor]:
    # Uncompiled, the kernel computes every score; compilation for CPU would need a C++ compiler for no gain.
    return cast(
        Callable[..., Tensor], torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention
    )


def _with_block_mask(layout: TreeLayout) -> TreeLayout:
    position, example, branch = layout.position_N, layout.example_N, layout.branch_N

    def sees(_: Tensor, __: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same_path = (branch[k] == -1) | (branch[k] == branch[q])
        return (example[k] == example[q]) & same_path & (position[k] <= position[q])

    num_tokens = len(position)
    block_mask = create_block_mask(sees, None, None, num_tokens, num_tokens, device=str(position.device))
    return TreeLayout(**{**layout.__dict__, "block_mask": block_mask})


def supports_shared_prefix(config: Any) -> bool:
    """Return whether the back-ends are exact for this architecture: a tested type, every layer attending in full."""
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    return config.model_type in SUPPORTED_MODEL_TYPES and layer_types == {"full_attention"}


def tree_or_sdpa_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **carried: Any
) -> tuple[Tensor, None]:
    """Attend over trees where a layout comes along; any other call of the model is plain scaled dot-product."""
    layout: TreeLayout | None = carried.get(LAYOUT)
    attend = (
        sdpa_attention_forward
        if layout is None
        else split_attention
        if layout.block_mask is None
        else flex_tree_attention
    )
    out: tuple[Tensor, None] = attend(module, query, key, value, attention_mask, **carried)
    return out


def carry_layouts(config: Any) -> None:
    """Make a model's attention layers follow a layout where its forward is given one."""
    if config._attn_implementation != _IMPLEMENTATION:
        assert config._attn_implementation == "sdpa", config._attn_implementation
        config._attn_implementation = _IMPLEMENTATION


def run_decoder(decoder: Any, ids_N: Tensor, layout: TreeLayout) -> Tensor:
    """Return the hidden state of every flat token [N, d]."""
    # A four-dimensional mask is handed through as it is: no other is built, and the layout alone says who sees whom.
    no_mask = torch.zeros(1, 1, 1, 1, device=ids_N.device)
    out = decoder(
        input_ids=ids_N[None],
        position_ids=layout.position_N[None],
        attention_mask=no_mask,
        use_cache=False,
        **{LAYOUT: layout},
    )
    hidden_ND: Tensor = out.last_hidden_state[0]
    return hidden_ND


_IMPLEMENTATION = "pft_tree"
AttentionInterface.register(_IMPLEMENTATION, tree_or_sdpa_attention)
AttentionMaskInterface.register(_IMPLEMENTATION, sdpa_mask)
