"""The language-model head on label positions: token log-probabilities without a [labels, vocabulary] matrix.

Only one chunk of labels has logits at a time. If the head is frozen (LoRA, evaluation), the gradient of each
log-probability with respect to its hidden state is a row of the hidden width, W[token] - softmax(W h) W: the forward
computes it, and the backward only scales it. If the head is trained, the backward recomputes each chunk's logits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOGITS_PER_CHUNK = 2**25  # 128 MB in float32; smaller chunks would read the weight more often


def label_logps(head: nn.Module, hidden_ND: Tensor, token_N: Tensor) -> Tensor:
    """Return the log-probability [N] of each token given the hidden state that predicts it, in float32 or wider."""
    if type(head) is not nn.Linear:
        # The head has an adapter or is another kind of layer: only its own call computes the right logits.
        logits_NV = _widened(head(hidden_ND))
        return logits_NV.log_softmax(-1).gather(-1, token_N[:, None]).squeeze(-1)
    chunked_head = _TrainedHead if head.weight.requires_grad else _FrozenHead

    def forward_in_chunks(hidden: Tensor) -> Tensor:
        apply: Callable[..., Tensor] = chunked_head.apply  # torch gives it no types
        return apply(hidden, head.weight, head.bias, token_N)

    # Under ZeRO-3 the weight is whole only inside the module's own call, and all ranks must make the same calls.
    with _replaced_forward(head, forward_in_chunks):
        logps_N: Tensor = head(hidden_ND)
    return logps_N


class _FrozenHead(torch.autograd.Function):
    """Map hidden [N, D], weight [V, D], bias [V] or None and token [N] to log-probabilities [N]."""

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


class _TrainedHead(torch.autograd.Function):
    """Like _FrozenHead, but with gradients for weight and bias too."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, token: Tensor) -> Tensor:
        device = hidden.device.type
        ctx.autocast = {"device_type": device, "dtype": torch.get_autocast_dtype(device),
                        "enabled": torch.is_autocast_enabled(device)}  # fmt: skip
        ctx.save_for_backward(hidden, weight, bias, token)
        chunks = _chunks(hidden, token, width=len(weight))
        return torch.cat([_logps_and_probabilities(F.linear(h, weight, bias), t)[0] for h, t in chunks])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        hidden, weight, bias, token = ctx.saved_tensors
        to_weight = torch.zeros_like(weight)
        to_bias = None if bias is None else torch.zeros_like(bias)
        to_hidden = []
        size = _labels_per_chunk(len(weight))
        with torch.autocast(**ctx.autocast):
            for rows, tokens, grad in zip(
                hidden.split(size), token.split(size), grad_outputs[0].split(size), strict=True
            ):
                to_logits = -_logps_and_probabilities(F.linear(rows, weight, bias), tokens)[1]
                to_logits[torch.arange(len(tokens), device=tokens.device), tokens] += 1.0
                to_logits = (to_logits * grad[:, None]).to(weight.dtype)
                to_hidden.append((to_logits @ weight).to(hidden.dtype))
                to_weight += to_logits.T @ rows.to(weight.dtype)
                if to_bias is not None:
                    to_bias += to_logits.sum(0)
        return torch.cat(to_hidden), to_weight, to_bias, None


def _chunks(hidden: Tensor, token: Tensor, *, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    size = _labels_per_chunk(width)
    yield from zip(hidden.split(size), token.split(size), strict=True)


def _labels_per_chunk(width: int) -> int:
    return max(1, LOGITS_PER_CHUNK // width)


def _logps_and_probabilities(logits: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of the tokens [C] and the probabilities of the whole vocabulary [C, V]."""
    logits = _widened(logits)
    probabilities = logits.softmax(-1)
    # Use the likeliest token, whose probability is at least 1 / V: a rare token's may have been rounded to 0.
    log_total = logits.amax(-1) - probabilities.amax(-1).log()
    return logits.gather(-1, token[:, None]).squeeze(-1) - log_total, probabilities


def _widened(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Make a module's call run another forward, so that its hooks still fire."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
