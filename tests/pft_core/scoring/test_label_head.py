"""The chunked head equals the plain log-softmax."""

import pytest
import torch
from torch import nn

from pft_core.encoding.batching import collate
from pft_core.policies.model import add_lora, load_base
from pft_core.policies.settings import LoraSettings
from pft_core.scoring import label_head
from pft_core.scoring.label_head import label_logps
from pft_core.scoring.scorer import BranchScorer
from tests.builders import tree


def head(*, dtype: torch.dtype = torch.float64, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 50, bias=bias).to(dtype).requires_grad_(False)


def plain(layer: nn.Linear, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return layer(hidden).log_softmax(-1)[torch.arange(len(tokens)), tokens]


@pytest.mark.parametrize("rows_per_chunk", [1, 3, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_head_equals_log_softmax_and_its_gradients(monkeypatch, rows_per_chunk: int, bias: bool) -> None:
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


def test_zero_rows_give_zero_log_probabilities() -> None:
    hidden = torch.zeros(0, 8, dtype=torch.float64, requires_grad=True)
    logps = label_logps(head(), hidden, torch.zeros(0, dtype=torch.long))
    logps.sum().backward()
    assert logps.shape == (0,)
    assert hidden.grad.shape == (0, 8)


@pytest.mark.parametrize("rows_per_chunk", [1, 3, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_a_trained_head_equals_log_softmax_and_its_gradients(monkeypatch, rows_per_chunk: int, bias: bool) -> None:
    monkeypatch.setattr(label_head, "LOGITS_PER_CHUNK", 50 * rows_per_chunk)
    layer, tokens = head(bias=bias).requires_grad_(), torch.tensor([0, 49, 7, 7, 20, 1, 3])
    hidden = (3 * torch.randn(7, 8, dtype=torch.float64)).requires_grad_()
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)
    inputs = [hidden, *layer.parameters()]
    want = torch.autograd.grad((weights * plain(layer, hidden, tokens)).sum(), inputs)
    gradients = torch.autograd.grad((weights * label_logps(layer, hidden, tokens)).sum(), inputs)
    for got, expected in zip(gradients, want, strict=True):
        assert torch.allclose(got, expected, rtol=1e-12, atol=1e-14)


def test_a_trained_head_uses_bfloat16_under_autocast_in_forward_and_backward() -> None:
    layer, tokens = head(dtype=torch.float32).requires_grad_(), torch.tensor([4, 5])
    hidden = torch.randn(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        logps, logits = label_logps(layer, hidden, tokens), layer(hidden)
    assert logits.dtype == torch.bfloat16
    want = logits.float().log_softmax(-1)[torch.arange(2), tokens]
    assert torch.allclose(logps, want, rtol=1e-6)
    (gradient,) = torch.autograd.grad(logps.sum(), layer.weight)
    (expected,) = torch.autograd.grad(want.sum(), layer.weight)
    # bfloat16 has 8 significant bits, so allow 2^-8 of the largest entry.
    assert (gradient - expected).abs().max() <= 2**-8 * expected.abs().max()


def test_an_adapter_on_the_head_counts_with_and_without_gradients(tiny_qwen2) -> None:
    base = load_base(str(tiny_qwen2), precision="fp32", gradient_checkpointing=False, device=torch.device("cpu"))
    model = add_lora(base, LoraSettings(r=2, alpha=4, dropout=0.0, target_modules=["q_proj", "lm_head"]), seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.5)
    example = tree("a", [[5, 6, 7], [5, 6, 8]], [[9, 10], [11]])
    for backend in ("split", "separate"):
        scorer = BranchScorer(model, backend=backend)
        trained = scorer(collate([example]))
        with torch.no_grad():
            evaluated = scorer(collate([example]))
        rows = [[5, 6, 7, 9, 10], [5, 6, 8, 11]]
        logits = [model(torch.tensor([row])).logits[0].log_softmax(-1) for row in rows]
        want = torch.stack([logits[0][2, 9] + logits[0][3, 10], logits[1][2, 11]])
        assert torch.allclose(trained, want, rtol=1e-5)
        assert torch.allclose(evaluated, want, rtol=1e-5)


def test_the_heads_own_forward_is_restored() -> None:
    layer = head()
    label_logps(layer, torch.randn(2, 8, dtype=torch.float64), torch.tensor([1, 2]))
    assert "forward" not in vars(layer)
