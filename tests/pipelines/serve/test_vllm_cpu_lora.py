"""Our LoRA products on vLLM's CPU build against vLLM's own, which are right where every row has an adapter."""

import pytest
import torch

pytest.importorskip("vllm")

from vllm.lora.ops.torch_ops import lora_ops as theirs

from pipelines.serve.engines import vllm_cpu_lora as ours

pytestmark = pytest.mark.vllm

SLOTS, RANK, IN, OUT = 3, 4, 16, 24
TOLERANCE = {"rtol": 0, "atol": 1e-5}  # float32 sums of 16 products in another order


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


@pytest.mark.parametrize("slots", [[0, 2, 2, 1, 0], [1] * 5, [2]])
def test_products_are_those_of_vllm_where_every_row_has_an_adapter(slots: list[int]) -> None:
    rows, indices = len(slots), torch.tensor(slots)
    down, up = drawn(SLOTS, 1, RANK, IN), drawn(SLOTS, 1, OUT // 2, RANK)
    inputs, written = drawn(rows, IN), drawn(rows, OUT)
    shrunk = [torch.zeros(rows, RANK) for _ in range(2)]
    theirs.bgmv_shrink(inputs, down, shrunk[0], indices, 0.5)
    ours.shrink(inputs, down, shrunk[1], indices, 0.5)
    torch.testing.assert_close(shrunk[1], shrunk[0], **TOLERANCE)
    for add in (True, False):
        sliced, whole = [written.clone() for _ in range(2)], [written.clone() for _ in range(2)]
        theirs.bgmv_expand_slice(shrunk[0], up, sliced[0], indices, 6, OUT // 2, add)
        ours.expand_slice(shrunk[0], up, sliced[1], indices, 6, OUT // 2, add)
        torch.testing.assert_close(sliced[1], sliced[0], **TOLERANCE)
        theirs.bgmv_expand(shrunk[0], up, whole[0], indices, add)  # the matrix is narrower than the output
        ours.expand(shrunk[0], up, whole[1], indices, add)
        torch.testing.assert_close(whole[1], whole[0], **TOLERANCE)


def test_rows_without_an_adapter_get_none() -> None:
    indices = torch.tensor([-1, 1, -1])
    inputs, written = drawn(3, IN), drawn(3, OUT)
    shrunk, expanded = drawn(3, RANK), written.clone()
    ours.shrink(inputs, drawn(SLOTS, 1, RANK, IN), shrunk, indices)
    ours.expand(drawn(3, RANK), drawn(SLOTS, 1, OUT, RANK), expanded, indices)
    assert [bool(row.any()) for row in shrunk] == [False, True, False]
    assert [torch.equal(*pair) for pair in zip(expanded, written, strict=True)] == [True, False, True]


def test_adapters_on_the_head_may_be_wider_than_its_output() -> None:
    """vLLM pads a head's matrix to whole blocks."""
    padded, narrow = drawn(SLOTS, 1, OUT, RANK), drawn(2, OUT - 5)
    results = [narrow.clone() for _ in range(2)]
    for result, expand in zip(results, (theirs.bgmv_expand, ours.expand), strict=True):
        expand(drawn(2, RANK), padded, result, torch.tensor([0, 2]), True)
    torch.testing.assert_close(results[1], results[0], **TOLERANCE)
