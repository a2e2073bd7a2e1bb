"""Smaller blocks of vLLM's prefix cache on a CPU: what fills no block is read again with every answer that is scored.

vLLM 0.32 admits multiples of 32 tokens, though its kernel for blocks of 16 (`vec16`) is built in: choosing costs a
quarter less with it, and a chat no more (measured on 25M parameters in float32).
"""

from typing import Any

import torch
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends import cpu_attn

SMALL, USUAL = 16, 32  # tokens


def block_tokens(dtype: torch.dtype) -> int:
    """Return the tokens of a block: small ones in float32 (measured), unless vLLM has a kernel for the CPU (NEON)."""
    return SMALL if dtype == torch.float32 and cpu_attn._get_attn_isa(dtype, USUAL) == "vec" else USUAL


def install() -> None:
    """Let vLLM take small blocks, in this process."""
    backend: Any = cpu_attn.CPUAttentionBackend
    backend.get_supported_kernel_block_sizes = staticmethod(lambda kv_cache_spec=None: [MultipleOf(SMALL)])
