"""LoRA for vLLM's CPU build: one matrix product for all rows of an adapter, and none for rows without one.

vLLM 0.32 copies an adapter's matrices once per token before it multiplies: a 30M model takes 25 times as long for a
prompt of 120 tokens as without an adapter (measured). It also applies the last adapter to rows that have none
(vllm-project/vllm#48421), multiplies by zeros in every projection that an adapter has no weights for, and regroups the
batch by adapter in every product: 32 adapters with one row each reached half the throughput of one adapter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora import model_manager
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

SEVERAL = 4  # an adapter with at least so many rows gets its own product; those with fewer share one, by copies

Rows = slice | torch.Tensor


def install() -> None:
    """Replace vLLM's functions with these in this process."""
    modules: tuple[Any, ...] = (lora_ops, punica_cpu)  # the first defines the functions, the second imported them
    for module in modules:
        module.bgmv_shrink = shrink
        module.bgmv_expand = expand
        module.bgmv_expand_slice = expand_slice
    punica_cpu.PunicaWrapperCPU = GroupedWrapper  # type: ignore[misc]  # mypy wants classes to stay what they are
    _reset_slots_on_load(model_manager.LoRAModelManager)


def _reset_slots_on_load(manager: Any) -> None:
    """Make wrappers forget a slot's cached state when another adapter is loaded into it."""
    activate = manager.activate_adapter

    def activate_adapter(self: Any, lora_id: int) -> bool:
        is_new: bool = activate(self, lora_id)
        if is_new:
            for wrapper in self.punica_wrapper_mapping.values():
                wrapper.forget(self.lora_index_to_id.index(lora_id))
        return is_new

    manager.activate_adapter = activate_adapter


@dataclass(frozen=True)
class AdapterGroups:
    """The rows of a batch, by adapter. several: slots with their rows; singles: the slot of each other row.

    Rows without an adapter are in neither.
    """

    several: Sequence[tuple[int, Rows]]
    singles: torch.Tensor
    single_rows: Rows
    single_slots: frozenset[int]


def group_rows(slots: torch.Tensor) -> AdapterGroups:
    """Group the rows of a batch. slots: [rows], -1 for no adapter."""
    used, counts = slots.unique(return_counts=True)
    count_of = {slot: count for slot, count in zip(used.tolist(), counts.tolist(), strict=True) if slot >= 0}
    several = [slot for slot, count in count_of.items() if count >= SEVERAL or len(count_of) == 1]
    few = frozenset(count_of) - frozenset(several)
    rows = torch.isin(slots, torch.tensor(sorted(few), dtype=slots.dtype)).nonzero().flatten()
    by_slot = [(slot, _as_slice((slots == slot).nonzero().flatten())) for slot in several]
    return AdapterGroups(by_slot, slots[rows], _as_slice(rows), few)


def _as_slice(rows: torch.Tensor) -> Rows:
    """Return adjacent rows as a slice, which avoids copies."""
    if len(rows) == 0 or int(rows[-1] - rows[0]) != len(rows) - 1:
        return rows
    return slice(int(rows[0]), int(rows[-1]) + 1)


class GroupedWrapper(punica_cpu.PunicaWrapperCPU):
    """vLLM's LoRA products for a batch of several adapters, without those for projections that have no weights."""

    def __init__(self, *arguments: Any, **more: Any):
        super().__init__(*arguments, **more)
        self._groups = group_rows(torch.empty(0, dtype=torch.long))
        self._has_weights: dict[int, dict[int, bool]] = {}  # slot -> address of all slots' matrices -> any non-zero

    def forget(self, slot: int) -> None:
        """Forget which projections the adapter in a slot has weights for."""
        self._has_weights.pop(slot, None)

    def update_metadata(self, *arguments: Any, **more: Any) -> None:
        super().update_metadata(*arguments, **more)
        self._groups = group_rows(self.token_lora_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """Add scale * (x A^T) B^T of each row's adapter to y, one slice of columns after the other.

        lora_a_stacked: [slots, 1, rank, in] for each slice; lora_b_stacked: [slots, 1, slice, rank].
        """
        begin = 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            self._add(y[:, begin : begin + width], x, a[:, 0], b[:, 0], scale)
            begin += width

    def _add(self, y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        groups = self._groups
        for slot, rows in groups.several:
            if self._is_weighted(b, slot):
                low = (x[rows].float() @ a[slot].float().T).to(y.dtype)
                _add_to(y, rows, low @ b[slot].to(y.dtype).T, scale)
        if any(self._is_weighted(b, slot) for slot in groups.single_slots):
            rows, slots = groups.single_rows, groups.singles
            # Rows on the left, because a matrix times a column takes five times as long.
            low = torch.bmm(x[rows].float()[:, None], a.index_select(0, slots).float().mT).to(y.dtype)
            _add_to(y, rows, torch.bmm(low, b.index_select(0, slots).to(y.dtype).mT)[:, 0], scale)

    def _is_weighted(self, b: torch.Tensor, slot: int) -> bool:
        known = self._has_weights.setdefault(slot, {})
        if b.data_ptr() not in known:
            known[b.data_ptr()] = bool(b[slot].any())
        return known[b.data_ptr()]


def _add_to(y: torch.Tensor, rows: Rows, product: torch.Tensor, scale: float) -> None:
    if isinstance(rows, slice):
        y[rows].add_(product, alpha=scale)
    else:
        y.index_add_(0, rows, product, alpha=scale)


def shrink(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, slots: torch.Tensor, scaling: float = 1.0
) -> None:
    """Write scaling * inputs A^T of each row's adapter to output, or 0 for rows without an adapter.

    inputs: [rows, in]; weights: [slots, 1, rank, in]; output: [rows, rank]; slots: [rows], -1 for no adapter.
    """
    output.zero_()
    for rows, matrix in _by_adapter(slots, weights, output.dtype):
        output[rows, : len(matrix)] = scaling * (inputs[rows].to(output.dtype) @ matrix.T)


def expand(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, slots: torch.Tensor, add_inputs: bool = True
) -> None:
    """Add inputs B^T of each row's adapter to its output, or overwrite the output.

    Either the weights or the output may have padded columns.
    """
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
    """Do the same as `expand` to a slice of columns: inputs [rows, rank]; weights [slots, 1, slice_size, rank]."""
    columns = output[:, slice_offset : slice_offset + slice_size]
    if not add_inputs:
        columns.zero_()
    for rows, matrix in _by_adapter(slots, weights, output.dtype):
        columns[rows] += inputs[rows].to(output.dtype) @ matrix[:slice_size].T


def _by_adapter(
    slots: torch.Tensor, weights: torch.Tensor, dtype: torch.dtype
) -> Iterator[tuple[slice | torch.Tensor, torch.Tensor]]:
    """Yield each adapter's rows and matrix; for a batch of one adapter the rows are a slice, which avoids copies."""
    used = slots.unique().tolist()
    for slot in used:
        if slot >= 0:
            rows = slice(len(slots)) if len(used) == 1 else (slots == slot).nonzero().flatten()
            yield rows, weights[slot].flatten(0, -2).to(dtype)
