"""The language-model head on label positions: log-probabilities of tokens, without a matrix [labels, vocabulary].

Where the head is not trained (LoRA, evaluation), the gradient of each log-probability with respect to its hidden state
is a row of the same width, W[token] - softmax(W h) W: it is computed chunk by chunk in the forward, and the backward
only scales it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOGITS_PER_CHUNK = 2**25  # 128 MB in float32; smaller chunks read the weight more often


def label_logps(head: nn.Module, hidden_ND: Tensor, token_N: Tensor) -> Tensor:
    """Return the log-probability [N] of each token given the hidden state before it, in float32 or wider."""
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in head.parameters()):
        logits_NV = _widened(head(hidden_ND))
        return logits_NV.log_softmax(-1).gather(-1, token_N[:, None]).squeeze(-1)

    def chunked(hidden: Tensor) -> Tensor:
        logps: Tensor = _LabelLogps.apply(hidden, head.weight, head.bias, token_N)
        return logps

    # Under ZeRO-3 the weight is whole only inside the module's own call.
    with _calling(head, chunked):
        logps_N: Tensor = head(hidden_ND)
    return logps_N


class _LabelLogps(torch.autograd.Function):
    """hidden [N, D], weight [V, D], bias [V] or None, token [N] -> log-probabilities [N]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, token: Tensor) -> Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        logps, gradients = [], []
        for rows, tokens in _chunks(hidden, token, width=len(weight)):
            logp, probabilities = _logps_and_probabilities(F.linear(rows, weight, bias), tokens)
            logps.append(logp)
            if wants_gradient:
                gradients.append((weight[tokens] - probabilities.to(weight.dtype) @ weight).to(hidden.dtype))
        if wants_gradient:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return (grad_outputs[0][:, None] * gradient_ND).to(gradient_ND.dtype), None, None, None


def _chunks(hidden: Tensor, token: Tensor, *, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    # At least one chunk, also of no rows.
    size = max(1, LOGITS_PER_CHUNK // width)
    yield from zip(hidden.split(size), token.split(size), strict=True)


def _logps_and_probabilities(logits: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of the tokens [C] and the probabilities of the whole vocabulary [C, V]."""
    logits = _widened(logits)
    probabilities = logits.softmax(-1)
    # From the likeliest token, whose probability is at least 1 / V: that of a rare token may have been rounded to 0.
    log_total = logits.amax(-1) - probabilities.amax(-1).log()
    return logits.gather(-1, token[:, None]).squeeze(-1) - log_total, probabilities


def _widened(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def _calling(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a module's call run another forward, its hooks around it."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
