"""Continuous batching for a transformers model: rows join and leave between any two tokens.

Rows are left-padded, so that all of them are continued in the same column of the key-value cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from pipelines.serve.engines.engine import RequestFault, Sampling, Step, Token

BASE = "__base__"  # peft's name for "no adapter" in a batch of several

# R rows, L columns of the cache, V vocabulary.


@dataclass(eq=False)
class Row:
    """One prompt that is being continued; `emit` is called from the engine's thread."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    adapter: str
    emit: Callable[[Step | BaseException], None]
    shift: Tensor | None = None  # added to the residual stream while it is continued [D]
    dropped: bool = False
    written: list[int] = field(default_factory=list)
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        if self.sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.sampling.seed)


class DecodingBatch:
    """Rows with their cache and the logits of their next tokens."""

    def __init__(self, model: Callable[..., Any], eos: int, device: torch.device):
        """model: called like a causal language model, with `adapter_names` and `shifts` (one a row) besides."""
        self.rows: list[Row] = []
        self._model, self._eos, self._device = model, eos, device
        self._cache: Any = None
        self._mask_RL = torch.zeros(0, 0, dtype=torch.long, device=device)
        self._logits_RV = torch.zeros(0, 0, device=device)

    @property
    def logits_RV(self) -> Tensor:
        """The logits of each row's next token."""
        return self._logits_RV

    def clear(self) -> None:
        """Drop all rows."""
        self._keep([])

    @torch.inference_mode()
    def admit(self, rows: Sequence[Row]) -> None:
        """Read the prompts of new rows and put them beside those that are under way."""
        longest = max(len(row.prompt_ids) for row in rows)
        ids = [[self._eos] * (longest - len(row.prompt_ids)) + list(row.prompt_ids) for row in rows]
        mask_RL = torch.tensor([[0] * (longest - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r in rows])
        cache: Any = DynamicCache()
        logits_RV = self._forward(torch.tensor(ids), mask_RL.to(self._device), cache, rows)
        if not self.rows:
            self._cache, self._mask_RL, self._logits_RV = cache, mask_RL.to(self._device), logits_RV
        else:
            width = max(longest, self._mask_RL.shape[1])
            _join(self._cache, cache, width)
            masks = [F.pad(m, (width - m.shape[1], 0)) for m in (self._mask_RL, mask_RL.to(self._device))]
            self._mask_RL = torch.cat(masks)
            self._logits_RV = torch.cat([self._logits_RV, logits_RV])
        self.rows += rows

    @torch.inference_mode()
    def step(self) -> None:
        """Write one token in every row; rows that are done, or dropped, leave."""
        self._drop_numberless()
        tokens = [pick(logits_V, row, self._eos) for logits_V, row in zip(self._logits_RV, self.rows, strict=True)]
        for row, token in zip(self.rows, tokens, strict=True):
            row.written.append(token.id)
            row.emit(Step(() if token.id == self._eos else (token,), finish_reason(row, self._eos)))
        kept = [i for i, row in enumerate(self.rows) if not row.dropped and finish_reason(row, self._eos) is None]
        self._keep(kept)
        if self.rows:
            self._mask_RL = F.pad(self._mask_RL, (0, 1), value=1)
            ids_R1 = torch.tensor([[row.written[-1]] for row in self.rows])
            self._logits_RV = self._forward(ids_R1, self._mask_RL, self._cache, self.rows)

    def _drop_numberless(self) -> None:
        """Tell rows whose logits are no numbers, as after a damaged adapter; the others go on."""
        bad = self._logits_RV.isnan().any(dim=1).tolist()
        for row, is_bad in zip(self.rows, bad, strict=True):
            if is_bad:
                row.emit(RequestFault("the model's logits are no numbers: the weights of this policy are damaged"))
        self._keep([i for i, is_bad in enumerate(bad) if not is_bad])

    def _keep(self, kept: Sequence[int]) -> None:
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in kept]
        index = torch.tensor(kept, dtype=torch.long, device=self._device)
        self._logits_RV = self._logits_RV[index]
        if not kept:
            self._cache = None
            return
        mask_RL = self._mask_RL[index]
        empty = int(mask_RL.any(dim=0).int().argmax())  # leading columns in which every row that is left has padding
        self._mask_RL = mask_RL[:, empty:]
        for layer in self._cache.layers:
            layer.keys, layer.values = (kv[index][:, :, empty:] for kv in (layer.keys, layer.values))

    def _forward(self, ids_RN: Tensor, mask_RL: Tensor, cache: Any, rows: Sequence[Row]) -> Tensor:
        position_RL = (mask_RL.cumsum(dim=1) - 1).clamp(min=0)
        out = self._model(
            input_ids=ids_RN.to(self._device),
            attention_mask=mask_RL,
            position_ids=position_RL[:, -ids_RN.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            adapter_names=[row.adapter for row in rows],
            shifts=[row.shift for row in rows],
        )
        logits_RV: Tensor = out.logits[:, -1].float()
        return logits_RV


def _join(cache: Any, joining: Any, width: int) -> None:
    for layer, new in zip(cache.layers, joining.layers, strict=True):
        for name in ("keys", "values"):
            parts = [getattr(source, name) for source in (layer, new)]
            padded = [F.pad(part, (0, 0, width - part.shape[2], 0)) for part in parts]
            setattr(layer, name, torch.cat(padded))


def finish_reason(row: Row, eos: int) -> str | None:
    """Return why a row is done: `stop` after EOS, `length` after its last token; None while it is not."""
    if row.written and row.written[-1] == eos:
        return "stop"
    return "length" if len(row.written) >= row.sampling.max_tokens else None


def pick(logits_V: Tensor, row: Row, eos: int) -> Token:
    """Choose the next token of a row, and note log-probabilities of the model as it is: no temperature, no mask."""
    sampling = row.sampling
    allowed_V = logits_V if not sampling.choices else _masked(logits_V, allowed(row, eos))
    if sampling.temperature == 0:
        chosen = int(allowed_V.argmax())
    else:
        weights_V = nucleus(torch.softmax(allowed_V.double() / sampling.temperature, dim=0), sampling.top_p).cpu()
        chosen = int(torch.multinomial(weights_V, 1, generator=row.generator))
    if sampling.logprobs is None:
        return Token(chosen)
    logps_V = torch.log_softmax(logits_V, dim=0)
    top = torch.topk(logps_V, sampling.logprobs)
    pairs = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Token(chosen, float(logps_V[chosen]), pairs)


def nucleus(probabilities_V: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens that together hold at least `top_p`; the first always stays."""
    if top_p >= 1:
        return probabilities_V
    ordered, index = probabilities_V.sort(descending=True)
    before = ordered.cumsum(dim=0) - ordered
    return torch.zeros_like(probabilities_V).scatter(0, index, torch.where(before < top_p, ordered, 0.0))


def allowed(row: Row, eos: int) -> set[int]:
    """Return the tokens that lead on to one of the row's choices."""
    done = len(row.written)
    begun = [(*choice, eos) for choice in row.sampling.choices if list(choice[:done]) == row.written]
    return {choice[done] for choice in begun}


def _masked(logits_V: Tensor, ids: set[int]) -> Tensor:
    index = torch.tensor(sorted(ids), device=logits_V.device)
    return torch.full_like(logits_V, float("-inf")).index_copy(0, index, logits_V[index])
