"""Attention over trees: two backends, both equal to running each branch alone.

`split` runs a dense attention for each level, on any device: a causal one over the prefixes, and one in which each
branch attends to its prefix and to itself. In trees of three levels, stems stand between them and have one too. `flex`
is one block-sparse kernel; torch has its backward on CUDA only. Linear layers see every token once and no padding:
tokens run flat (see tree_layout.py), and only attention pads.
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

from pft_core.scoring.tree_layout import Level, TreeLayout

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
    """Attend with a dense attention for each level. query [1, H, N, D], key and value [1, G, N, D] -> [1, N, H, D].

    Prefixes are padded on the right, so causality hides the padding. Stems and branches need a mask.
    """
    outputs = []
    for level in layout.levels:
        keys, values = (keys_seen(x[0], level) for x in (key, value))
        visible = {"is_causal": True} if level.mask is None else {"attn_mask": level.mask}
        outputs.append(level.rows.flatten(_sdpa(level.rows.pad(query[0]), keys, values, **visible, **options)))
    return torch.cat(outputs)[None]


def label_attention(query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, **options: Any) -> Tensor:
    """Attend only for the tokens that predict labels. query [H, K, D], key and value [G, N, D] -> [K, H, D]."""
    keys, values = (keys_seen(x, layout.levels[-1]) for x in (key, value))
    out = _sdpa(layout.label_rows.pad(query), keys, values, attn_mask=layout.label_mask, **options)
    return layout.label_rows.flatten(out)


def keys_seen(key_GND: Tensor, level: Level) -> Tensor:
    """Return the keys that each row may attend to [B, G, A + U, D]: those of the rows it continues, then its own."""
    own = level.rows.pad(key_GND)
    return torch.cat([*(above.keys(key_GND) for above in level.above), own], dim=2) if level.above else own


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
    position, example, stem, branch = layout.position_N, layout.example_N, layout.stem_N, layout.branch_N

    def sees(_: Tensor, __: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same_stem = (stem[k] == -1) | (stem[k] == stem[q])
        same_branch = (branch[k] == -1) | (branch[k] == branch[q])
        return (example[k] == example[q]) & same_stem & same_branch & (position[k] <= position[q])

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
