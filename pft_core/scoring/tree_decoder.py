"""A decoder over trees: every layer runs each token once, and the last layer runs only what the labels need.

After the last attention, only the tokens that predict labels are read, so the last layer skips the queries, output
projection and MLP of all others. Keys and values still come from every token.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import rotate_half

from pft_core.scoring.attention import TREES, AttentionTrees, attend_over_trees, can_attend_over_trees, label_attention

# Decoders whose modules have the names and the order that `_last_layer` relies on; a test covers each of them.
SUPPORTED_MODEL_TYPES = ("llama", "qwen2", "qwen3")


def why_no_trees(config: Any) -> str | None:
    """Return why a model cannot run trees, or None if it can: its type is tested, and every layer uses full scaled
    dot-product attention."""
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        return f"model type {config.model_type!r} is not among {', '.join(SUPPORTED_MODEL_TYPES)}"
    if layer_types != {"full_attention"}:
        return f"this {config.model_type} has layers of type {', '.join(sorted(layer_types - {'full_attention'}))}"
    return None if can_attend_over_trees(config) else f"its attention is {config._attn_implementation!r}, not 'sdpa'"


def prepare_decoder(decoder: Any) -> None:
    """Make a decoder run trees whenever it receives some; all its other calls behave as before."""
    attend_over_trees(decoder.config)
    last = decoder.layers[-1]
    last.forward = MethodType(_last_layer_or_plain, last)


def run_decoder(decoder: Any, trees: AttentionTrees) -> Tensor:
    """Return the hidden states [K, d] of the tokens that predict labels."""
    layout = trees.layout
    # transformers passes a four-dimensional mask through and builds no other: only the trees decide who sees whom.
    no_mask = torch.zeros(1, 1, 1, 1, device=layout.ids_N.device)
    out = decoder(
        input_ids=layout.ids_N[None],
        position_ids=layout.position_N[None],
        attention_mask=no_mask,
        use_cache=False,
        **{TREES: trees},
    )
    hidden_KD: Tensor = out.last_hidden_state[0]
    return hidden_KD


def _last_layer_or_plain(layer: Any, hidden_states: Tensor, *arguments: Any, **carried: Any) -> Tensor:
    if TREES not in carried:
        plain: Tensor = type(layer).forward(layer, hidden_states, *arguments, **carried)
        return plain
    return _last_layer(layer, hidden_states[0], carried[TREES], carried["position_embeddings"])[None]


def _last_layer(layer: Any, hidden_ND: Tensor, trees: AttentionTrees, rotary: tuple[Tensor, Tensor]) -> Tensor:
    predictor_K = trees.layout.predictor_K
    residual_KD = hidden_ND[predictor_K]
    residual_KD = residual_KD + _attend(layer.self_attn, layer.input_layernorm(hidden_ND), trees, rotary)
    out_KD: Tensor = residual_KD + layer.mlp(layer.post_attention_layernorm(residual_KD))
    return out_KD


def _attend(attention: Any, normed_ND: Tensor, trees: AttentionTrees, rotary: tuple[Tensor, Tensor]) -> Tensor:
    predictor_K = trees.layout.predictor_K
    cos_ND, sin_ND = (table[0] for table in rotary)
    query = _heads(attention.q_proj, normed_ND[predictor_K], attention, norm="q_norm")
    key = _heads(attention.k_proj, normed_ND, attention, norm="k_norm")
    value = _heads(attention.v_proj, normed_ND, attention)
    out_KHD = label_attention(
        _rotated(query, cos_ND[predictor_K], sin_ND[predictor_K]),
        _rotated(key, cos_ND, sin_ND),
        value,
        trees.layout,
        scale=attention.scaling,
        dropout_p=attention.attention_dropout if attention.training else 0.0,
    )
    out_KD: Tensor = attention.o_proj(out_KHD.flatten(1))
    return out_KD


def _heads(projection: nn.Module, hidden: Tensor, attention: Any, *, norm: str = "") -> Tensor:
    """Project [M, d] and split it into heads [heads, M, D]; Qwen3 normalizes queries and keys."""
    heads: Tensor = projection(hidden).unflatten(-1, (-1, attention.head_dim))
    normed: Tensor = getattr(attention, norm, nn.Identity())(heads) if norm else heads
    return normed.transpose(0, 1)


def _rotated(heads: Tensor, cos_MD: Tensor, sin_MD: Tensor) -> Tensor:
    rotated: Tensor = heads * cos_MD + rotate_half(heads) * sin_MD
    return rotated
