"""Tests of our LoRA products for vLLM's CPU build against vLLM's own, which are correct if every row has an adapter."""

from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from vllm.lora.layers import LoRAMapping
from vllm.lora.ops.torch_ops import lora_ops as theirs
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from pipelines.serve.engines import vllm_cpu_lora as ours

pytestmark = pytest.mark.vllm

SLOTS, RANK, IN, OUT = 3, 4, 16, 24
TOLERANCE = {"rtol": 0, "atol": 1e-5}  # float32 sums of 16 products in a different order


def random_tensor(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


@pytest.mark.parametrize("slots", [[0, 2, 2, 1, 0], [1] * 5, [2]])
def test_products_equal_vllms_if_every_row_has_an_adapter(slots: list[int]) -> None:
    rows, indices = len(slots), torch.tensor(slots)
    down, up = random_tensor(SLOTS, 1, RANK, IN), random_tensor(SLOTS, 1, OUT // 2, RANK)
    inputs, output = random_tensor(rows, IN), random_tensor(rows, OUT)
    shrunk = [torch.zeros(rows, RANK) for _ in range(2)]
    theirs.bgmv_shrink(inputs, down, shrunk[0], indices, 0.5)
    ours.shrink(inputs, down, shrunk[1], indices, 0.5)
    torch.testing.assert_close(shrunk[1], shrunk[0], **TOLERANCE)
    for add in (True, False):
        sliced, whole = [output.clone() for _ in range(2)], [output.clone() for _ in range(2)]
        theirs.bgmv_expand_slice(shrunk[0], up, sliced[0], indices, 6, OUT // 2, add)
        ours.expand_slice(shrunk[0], up, sliced[1], indices, 6, OUT // 2, add)
        torch.testing.assert_close(sliced[1], sliced[0], **TOLERANCE)
        theirs.bgmv_expand(shrunk[0], up, whole[0], indices, add)  # the matrix is narrower than the output
        ours.expand(shrunk[0], up, whole[1], indices, add)
        torch.testing.assert_close(whole[1], whole[0], **TOLERANCE)


def test_rows_without_an_adapter_stay_unchanged() -> None:
    indices = torch.tensor([-1, 1, -1])
    inputs, output = random_tensor(3, IN), random_tensor(3, OUT)
    shrunk, expanded = random_tensor(3, RANK), output.clone()
    ours.shrink(inputs, random_tensor(SLOTS, 1, RANK, IN), shrunk, indices)
    ours.expand(random_tensor(3, RANK), random_tensor(SLOTS, 1, OUT, RANK), expanded, indices)
    assert [bool(row.any()) for row in shrunk] == [False, True, False]
    assert [torch.equal(*pair) for pair in zip(expanded, output, strict=True)] == [True, False, True]


def test_adapters_of_the_head_may_be_wider_than_its_output() -> None:
    """vLLM pads the head's matrix to whole blocks."""
    padded, narrow = random_tensor(SLOTS, 1, OUT, RANK), random_tensor(2, OUT - 5)
    results = [narrow.clone() for _ in range(2)]
    for result, expand in zip(results, (theirs.bgmv_expand, ours.expand), strict=True):
        expand(random_tensor(2, RANK), padded, result, torch.tensor([0, 2]), True)
    torch.testing.assert_close(results[1], results[0], **TOLERANCE)


SLICES = (OUT, 8, 8)  # like a fused query, key and value


def stack_matrices() -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Return the matrices of all slots; in the second slice only slot 1 has weights, as if only it trained keys."""
    up = [random_tensor(SLOTS, 1, width, RANK) for width in SLICES]
    up[1][0], up[1][2] = 0, 0
    return tuple(random_tensor(SLOTS, 1, RANK, IN) + i for i in range(len(SLICES))), tuple(up)


STACKED = stack_matrices()  # must live as long as the wrappers, which identify a projection by its address


def apply_lora(wrapper: Any, slots: list[int], inputs: torch.Tensor) -> torch.Tensor:
    """Return a wrapper's result on ones. slots: of each row, -1 for none; slot i holds the adapter with id i + 1."""
    ids = tuple(slot + 1 for slot in slots)
    wrapper.update_metadata(LoRAMapping(ids, ids, is_prefill=True), [i + 1 for i in range(SLOTS)], SLOTS, 100)
    output = torch.ones(len(slots), sum(SLICES), dtype=inputs.dtype)
    wrapper.add_lora_linear(output, inputs, *STACKED, 0.5, SLICES)
    return output


@pytest.mark.parametrize("slots", [[0] * 5, [2], [0, 1, 2], [2, 0, 2, 2, 0, 2, 1], [0, 0, 0, 0, 1, 1, 1, 1], [2, 1, 1]])
def test_a_batch_of_several_adapters_equals_vllms(slots: list[int]) -> None:
    wrappers = [kind(64, 8, "cpu") for kind in (PunicaWrapperCPU, ours.GroupedWrapper)]
    expected, actual = (apply_lora(wrapper, slots, random_tensor(len(slots), IN)) for wrapper in wrappers)
    torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize("slots", [[-1, 0, -1, 2, 0], [-1] * 3, [-1, 1, 1, 1, 1, -1, 0, 2, 0]])
def test_rows_without_an_adapter_stay_unchanged_in_a_mixed_batch(slots: list[int]) -> None:
    wrapper, inputs = ours.GroupedWrapper(64, 8, "cpu"), random_tensor(len(slots), IN)
    batched = apply_lora(wrapper, slots, inputs)
    for row, slot in enumerate(slots):
        alone = apply_lora(wrapper, [slot], inputs[row : row + 1])
        torch.testing.assert_close(batched[row : row + 1], alone, **TOLERANCE)
        assert bool((alone == 1).all()) == (slot == -1)


def test_an_adapter_that_replaces_another_in_its_slot_is_checked_for_weights_again() -> None:
    """The previous adapter had no weights here."""
    wrapper, a, b = ours.GroupedWrapper(64, 8, "cpu"), random_tensor(1, 1, RANK, IN), torch.zeros(1, 1, OUT, RANK)

    class Manager:
        lora_index_to_id, punica_wrapper_mapping = [7], {"llm": wrapper}

        def activate_adapter(self, lora_id: int) -> bool:
            b.fill_(1)
            return True

    def adds() -> bool:
        output = torch.zeros(1, OUT)
        wrapper.update_metadata(LoRAMapping((7,), (7,), is_prefill=True), [7], 1, 100)
        wrapper.add_lora_linear(output, random_tensor(1, IN), (a,), (b,), 1.0, (OUT,))
        return bool(output.any())

    ours._reset_slots_on_load(Manager)
    assert not adds()
    Manager().activate_adapter(7)
    assert adds()
