"""The chunked head against the plain log-softmax."""

import pytest
import torch
from torch import nn

from pft_core import label_head
from pft_core.label_head import label_logps


def head(*, dtype: torch.dtype = torch.float64, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 50, bias=bias).to(dtype).requires_grad_(False)


def plain(layer: nn.Linear, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return layer(hidden).log_softmax(-1)[torch.arange(len(tokens)), tokens]


@pytest.mark.parametrize("rows_per_chunk", [1, 3, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_head_gives_the_plain_values_and_gradients(monkeypatch, rows_per_chunk: int, bias: bool) -> None:
    monkeypatch.setattr(label_head, "LOGITS_PER_CHUNK", 50 * rows_per_chunk)
    layer, tokens = head(bias=bias), torch.tensor([0, 49, 7, 7, 20, 1, 3])
    hidden = (3 * torch.randn(7, 8, dtype=torch.float64)).requires_grad_()
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)
    (want_gradient,) = torch.autograd.grad((weights * plain(layer, hidden, tokens)).sum(), hidden)
    logps = label_logps(layer, hidden, tokens)
    (gradient,) = torch.autograd.grad((weights * logps).sum(), hidden)
    assert torch.allclose(logps, plain(layer, hidden, tokens), rtol=1e-13, atol=0)
    assert torch.allclose(gradient, want_gradient, rtol=1e-12, atol=1e-14)


def test_a_token_whose_probability_rounds_to_zero_keeps_its_log_probability() -> None:
    layer = head(dtype=torch.float32)
    hidden = torch.full((1, 8), 300.0)
    token = layer(hidden).argmin(-1)
    want = plain(head(), hidden.double(), token)
    assert layer(hidden).softmax(-1)[0, token] == 0
    assert label_logps(layer, hidden, token).item() == pytest.approx(want.item(), rel=1e-6)


def test_no_rows_are_no_log_probabilities() -> None:
    hidden = torch.zeros(0, 8, dtype=torch.float64, requires_grad=True)
    logps = label_logps(head(), hidden, torch.zeros(0, dtype=torch.long))
    logps.sum().backward()
    assert logps.shape == (0,)
    assert hidden.grad.shape == (0, 8)


def test_a_trained_head_gets_its_gradient() -> None:
    layer = head().requires_grad_()
    tokens = torch.tensor([4, 5])
    hidden = torch.randn(2, 8, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(label_logps(layer, hidden, tokens).sum(), layer.weight)
    (want,) = torch.autograd.grad(plain(layer, hidden, tokens).sum(), layer.weight)
    assert torch.allclose(gradient, want, rtol=1e-12)


def test_the_head_is_left_as_it_was() -> None:
    layer = head()
    label_logps(layer, torch.randn(2, 8, dtype=torch.float64), torch.tensor([1, 2]))
    assert "forward" not in vars(layer)
