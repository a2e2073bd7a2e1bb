"""Which token comes next, of logits: what is allowed, what is penalised, and what chance decides among."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.serve.engines.engine import Sampling, Token

# N places, V vocabulary.


def pick(logits_V: Tensor, row: Any, eos: int) -> Token:
    """Choose a row's next token, and note log-probabilities of the model as it is: no temperature, no penalty.

    Only a grammar is seen in them, as vLLM has it.
    """
    sampling = row.sampling
    if row.grammar is not None:
        logits_V = row.grammar.masked(logits_V)
    chosen = _chosen(_allowed(logits_V, row, eos), row)
    return Token(chosen) if sampling.logprobs is None else told(logits_V[None], [chosen], sampling.logprobs)[0]


def told(logits_NV: Tensor, chosen: Sequence[int], num_top: int) -> list[Token]:
    """Return tokens with their log-probabilities, and the likeliest in their places; none that a grammar forbids."""
    logps_NV = torch.log_softmax(logits_NV, dim=1)
    logps_N1 = logps_NV.gather(1, torch.tensor(chosen, device=logps_NV.device)[:, None])
    top = torch.topk(logps_NV, num_top)
    rows = zip(chosen, logps_N1[:, 0].tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        Token(token, logp, tuple((id, value) for id, value in zip(ids, values, strict=True) if value != float("-inf")))
        for token, logp, ids, values in rows
    ]


def _chosen(logits_V: Tensor, row: Any) -> int:
    sampling: Sampling = row.sampling
    logits_V = penalised(logits_V, sampling, row.prompt_ids, row.written)
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    weights_V = torch.softmax(logits_V.double() / sampling.temperature, dim=0)
    if sampling.min_p > 0:
        weights_V = torch.where(weights_V >= sampling.min_p * weights_V.max(), weights_V, 0.0)
    if 0 < sampling.top_k < len(weights_V):
        weights_V = torch.where(weights_V >= weights_V.topk(sampling.top_k).values[-1], weights_V, 0.0)
    weights_V = nucleus(weights_V / weights_V.sum(), sampling.top_p)
    return int(torch.multinomial(weights_V.cpu(), 1, generator=row.generator))


def penalised(logits_V: Tensor, sampling: Sampling, prompt_ids: Sequence[int], written: Sequence[int]) -> Tensor:
    """Weaken tokens that are there already: in prompt or answer (repetition), in the answer (frequency, presence)."""
    device, penalty = logits_V.device, sampling.repetition_penalty
    if penalty != 1:
        seen = torch.tensor(sorted({int(token) for token in (*prompt_ids, *written)}), device=device)
        values = logits_V[seen]
        logits_V = logits_V.index_copy(0, seen, torch.where(values > 0, values / penalty, values * penalty))
    if written and (sampling.frequency_penalty or sampling.presence_penalty):
        counts_V = torch.bincount(torch.tensor(written, device=device), minlength=len(logits_V))
        logits_V = logits_V - sampling.frequency_penalty * counts_V - sampling.presence_penalty * (counts_V > 0)
    return logits_V


def nucleus(probabilities_V: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens that together hold at least `top_p`; the first always stays."""
    if top_p >= 1:
        return probabilities_V
    ordered, index = probabilities_V.sort(descending=True)
    before = ordered.cumsum(dim=0) - ordered
    return torch.zeros_like(probabilities_V).scatter(0, index, torch.where(before < top_p, ordered, 0.0))


def allowed(row: Any, eos: int) -> set[int]:
    """Return the tokens that lead on to one of the row's choices."""
    done = len(row.written)
    begun = [(*choice, eos) for choice in row.sampling.choices if list(choice[:done]) == row.written]
    return {choice[done] for choice in begun}


def _allowed(logits_V: Tensor, row: Any, eos: int) -> Tensor:
    """Return the logits of what may come next: on the way to a choice, and no end before `min_tokens`."""
    if row.sampling.choices:
        index = torch.tensor(sorted(allowed(row, eos)), device=logits_V.device)
        return torch.full_like(logits_V, float("-inf")).index_copy(0, index, logits_V[index])
    if len(row.written) < row.sampling.min_tokens and not row.sampling.ignore_eos:
        return logits_V.index_fill(0, torch.tensor([eos, *row.also_ends], device=logits_V.device), float("-inf"))
    return logits_V
