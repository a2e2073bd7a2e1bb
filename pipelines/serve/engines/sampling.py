"""Choosing the next token from logits: allowed tokens, penalties, and sampling."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.serve.engines.serving_engine import Sampling, Token

# N positions, V vocabulary.


def pick(logits_V: Tensor, row: Any, eos: int) -> Token:
    """Choose a row's next token. Log-probabilities are the model's own, without temperature or penalties.

    Of the constraints, only a grammar affects them, as in vLLM.
    """
    sampling = row.sampling
    if row.grammar is not None:
        logits_V = row.grammar.masked(logits_V)
    token_id = _sample(_mask_disallowed(logits_V, row, eos), row)
    if sampling.logprobs is None:
        return Token(token_id)
    return tokens_with_logprobs(logits_V[None], [token_id], sampling.logprobs)[0]


def tokens_with_logprobs(logits_NV: Tensor, token_ids: Sequence[int], num_top: int) -> list[Token]:
    """Return tokens with their log-probabilities and the likeliest tokens at their positions, no forbidden ones."""
    logps_NV = torch.log_softmax(logits_NV, dim=1)
    logps_N1 = logps_NV.gather(1, torch.tensor(token_ids, device=logps_NV.device)[:, None])
    top = torch.topk(logps_NV, num_top)
    rows = zip(token_ids, logps_N1[:, 0].tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        Token(token, logp, tuple((id, value) for id, value in zip(ids, values, strict=True) if value != float("-inf")))
        for token, logp, ids, values in rows
    ]


def _sample(logits_V: Tensor, row: Any) -> int:
    sampling: Sampling = row.sampling
    logits_V = penalize(logits_V, sampling, row.prompt_ids, row.output_ids)
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    weights_V = torch.softmax(logits_V.double() / sampling.temperature, dim=0)
    if sampling.min_p > 0:
        weights_V = torch.where(weights_V >= sampling.min_p * weights_V.max(), weights_V, 0.0)
    if 0 < sampling.top_k < len(weights_V):
        weights_V = torch.where(weights_V >= weights_V.topk(sampling.top_k).values[-1], weights_V, 0.0)
    weights_V = nucleus(weights_V / weights_V.sum(), sampling.top_p)
    return int(torch.multinomial(weights_V.cpu(), 1, generator=row.generator))


def penalize(logits_V: Tensor, sampling: Sampling, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> Tensor:
    """Penalize tokens that occur already: in prompt or answer (repetition), in the answer (frequency, presence)."""
    device, penalty = logits_V.device, sampling.repetition_penalty
    if penalty != 1:
        seen = torch.tensor(sorted({int(token) for token in (*prompt_ids, *output_ids)}), device=device)
        values = logits_V[seen]
        logits_V = logits_V.index_copy(0, seen, torch.where(values > 0, values / penalty, values * penalty))
    if output_ids and (sampling.frequency_penalty or sampling.presence_penalty):
        counts_V = torch.bincount(torch.tensor(output_ids, device=device), minlength=len(logits_V))
        logits_V = logits_V - sampling.frequency_penalty * counts_V - sampling.presence_penalty * (counts_V > 0)
    return logits_V


def nucleus(probabilities_V: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens whose probabilities add up to at least `top_p`; the first is always kept."""
    if top_p >= 1:
        return probabilities_V
    ordered, index = probabilities_V.sort(descending=True)
    before = ordered.cumsum(dim=0) - ordered
    return torch.zeros_like(probabilities_V).scatter(0, index, torch.where(before < top_p, ordered, 0.0))


def allowed_tokens(row: Any, eos: int) -> set[int]:
    """Return the tokens that continue one of the row's choices."""
    done = len(row.output_ids)
    matching = [(*choice, eos) for choice in row.sampling.choices if list(choice[:done]) == row.output_ids]
    return {choice[done] for choice in matching}


def _mask_disallowed(logits_V: Tensor, row: Any, eos: int) -> Tensor:
    """Return the logits with -inf for tokens that fit no choice, and for the end of the text before `min_tokens`."""
    if row.sampling.choices:
        index = torch.tensor(sorted(allowed_tokens(row, eos)), device=logits_V.device)
        return torch.full_like(logits_V, float("-inf")).index_copy(0, index, logits_V[index])
    if len(row.output_ids) < row.sampling.min_tokens and not row.sampling.ignore_eos:
        return logits_V.index_fill(0, torch.tensor([eos, *row.also_ends], device=logits_V.device), float("-inf"))
    return logits_V
