"""Attention over trees: two backends, both equal to running each branch alone.

`split` runs two dense attentions on any device: a causal one over the prefixes, and one in which each branch attends
to its prefix and to itself. `flex` is one block-sparse kernel; torch has its backward on CUDA only. Linear layers see
every token once and no padding: tokens run flat (see tree_layout.py), and only attention pads.
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

from pft_core.scoring.tree_layout import TreeLayout

SharedAttention = Literal["split", "flex"]
TREES = "trees"  # the keyword argument that carries the trees through a decoder to its attention layers


@dataclass(frozen=True)
class AttentionTrees:
    """The layout of a batch and, for `flex`, its block mask."""

    layout: TreeLayout
    block_mask: BlockMask | None


def attention_trees(layout: TreeLayout, attention: SharedAttention) -> AttentionTrees:
    """Prepare a layout for a backend."""
    return AttentionTrees(layout, _block_mask(layout) if attention == "flex" else None)


def split_attention(query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, **options: Any) -> Tensor:
    """Attend with two dense attentions. query [1, H, N, D], key and value [1, G, N, D] -> [1, N, H, D].

    Prefixes are padded on the right, so causality hides the padding. Branches need a mask.
    """
    prefixes, branches, outputs = layout.prefixes, layout.branches, []
    if prefixes.longest:
        padded = (prefixes.pad(x[0]) for x in (query, key, value))
        outputs.append(prefixes.flatten(_sdpa(*padded, is_causal=True, **options)))
    keys, values = branch_keys(key[0], layout), branch_keys(value[0], layout)
    out = _sdpa(branches.pad(query[0]), keys, values, attn_mask=layout.branch_mask, **options)
    outputs.append(branches.flatten(out))
    return torch.cat(outputs)[None]


def label_attention(query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, **options: Any) -> Tensor:
    """Attend only for the tokens that predict labels. query [H, K, D], key and value [G, N, D] -> [K, H, D]."""
    keys, values = branch_keys(key, layout), branch_keys(value, layout)
    out = _sdpa(layout.label_rows.pad(query), keys, values, attn_mask=layout.label_mask, **options)
    return layout.label_rows.flatten(out)


def branch_keys(key_GND: Tensor, layout: TreeLayout) -> Tensor:
    """Return the keys each branch may attend to [R, G, S + U, D]: those of its prefix, then its own."""
    own = layout.branches.pad(key_GND)
    if not layout.prefixes.longest:
        return own
    return torch.cat([layout.prefixes.pad(key_GND).index_select(0, layout.branch_example_R), own], dim=2)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    if query.is_cuda and query.shape[1] != key.shape[1]:
        # With a mask, only CUDA's slow kernel accepts fewer key heads than query heads.
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=query.shape[1] != key.shape[1], **options)


def flex_tree_attention(query: Tensor, key: Tensor, value: Tensor, block_mask: BlockMask, *, scale: float) -> Tensor:
    """Attend with FlexAttention, which skips blocks that no token may see. Shapes are those of `split_attention`."""
    out = _flex(query.device.type)(query, key, value, block_mask=block_mask, scale=scale, enable_gqa=True)
    return out.transpose(1, 2).contiguous()


@cache
def _flex(device_type: str) -> Callable[..., Tensor]:
    # Compiling for CPU needs a C++ compiler, and only tests run flex there.
    compiled = torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention
    return cast(Callable[..., Tensor], compiled)


def _block_mask(layout: TreeLayout) -> BlockMask:
    position, example, branch = layout.position_N, layout.example_N, layout.branch_N

    def sees(_: Tensor, __: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same_path = (branch[k] == -1) | (branch[k] == branch[q])
        return (example[k] == example[q]) & same_path & (position[k] <= position[q])

    return create_block_mask(sees, None, None, len(position), len(position), device=str(position.device))


def tree_or_sdpa_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **carried: Any
) -> tuple[Tensor, None]:
    """Attend over trees if the call carries them; any other call runs plain scaled dot-product attention."""
    trees: AttentionTrees | None = carried.get(TREES)
    if trees is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **carried)
        return plain
    scale, dropout = carried["scaling"], carried["dropout"]
    if trees.block_mask is None:
        return split_attention(query, key, value, trees.layout, scale=scale, dropout_p=dropout), None
    assert dropout == 0.0, "FlexAttention has no dropout"
    return flex_tree_attention(query, key, value, trees.block_mask, scale=scale), None


def can_attend_over_trees(config: Any) -> bool:
    """Return whether a model uses scaled dot-product attention (None: transformers' default, which is sdpa)."""
    return config._attn_implementation in (None, "sdpa", _IMPLEMENTATION)


def attend_over_trees(config: Any) -> None:
    """Make a model's attention layers attend over trees whenever its forward receives some."""
    assert can_attend_over_trees(config), config._attn_implementation
    config._attn_implementation = _IMPLEMENTATION


_IMPLEMENTATION = "pft_tree"
AttentionInterface.register(_IMPLEMENTATION, tree_or_sdpa_attention)
AttentionMaskInterface.register(_IMPLEMENTATION, sdpa_mask)
