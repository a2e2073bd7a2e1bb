"""LoRA on vLLM's CPU build: one matrix product for all rows of an adapter, and none for rows without one.

vLLM 0.32 copies an adapter's matrices once for every token before it multiplies (a prompt of 120 tokens of a 30M model
waits 25 times as long as without an adapter, measured), and gives rows without an adapter the last one's
(vllm-project/vllm#48421).
"""

from collections.abc import Iterator
from typing import Any

import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu


def install() -> None:
    """Put these functions in the place of vLLM's, in this process."""
    modules: tuple[Any, ...] = (lora_ops, punica_cpu)  # the first calls its own by name, the second imported them
    for module in modules:
        module.bgmv_shrink = shrink
        module.bgmv_expand = expand
        module.bgmv_expand_slice = expand_slice


def shrink(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, slots: torch.Tensor, scaling: float = 1.0
) -> None:
    """Write scaling * inputs A^T of each row's adapter, 0 where it has none.

    inputs: [rows, in]; weights: [slots, 1, rank, in]; output: [rows, rank]; slots: [rows], -1 for no adapter.
    """
    output.zero_()
    for rows, matrix in _by_adapter(slots, weights, output.dtype):
        output[rows, : len(matrix)] = scaling * (inputs[rows].to(output.dtype) @ matrix.T)


def expand(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, slots: torch.Tensor, add_inputs: bool = True
) -> None:
    """Add inputs B^T of each row's adapter to its output, or write it there; one of both may have padded columns."""
    expand_slice(inputs, weights, output, slots, 0, min(weights.shape[-2], output.shape[1]), add_inputs)


def expand_slice(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    slots: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """Do as `expand`, to some of the columns: inputs [rows, rank]; weights [slots, 1, slice_size, rank]."""
    columns = output[:, slice_offset : slice_offset + slice_size]
    if not add_inputs:
        columns.zero_()
    for rows, matrix in _by_adapter(slots, weights, output.dtype):
        columns[rows] += inputs[rows].to(output.dtype) @ matrix[:slice_size].T


def _by_adapter(
    slots: torch.Tensor, weights: torch.Tensor, dtype: torch.dtype
) -> Iterator[tuple[slice | torch.Tensor, torch.Tensor]]:
    """Give each adapter's rows and its matrix; a batch of one adapter as a slice, which copies nothing."""
    used = slots.unique().tolist()
    for slot in used:
        if slot >= 0:
            rows = slice(len(slots)) if len(used) == 1 else (slots == slot).nonzero().flatten()
            yield rows, weights[slot].flatten(0, -2).to(dtype)
