"""Continuous batching for a transformers model: rows join and leave between any two tokens.

Rows are left-padded, so that all of them write to the same column of the key-value cache.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from pft_core.errors import UserError
from pipelines.serve.engines.grammars import Matcher
from pipelines.serve.engines.sampling import pick, tokens_with_logprobs
from pipelines.serve.engines.serving_engine import RequestFault, Sampling, Step, Token

log = logging.getLogger(__name__)

BASE = "__base__"  # peft's name for "no adapter" in a batch of several

NOT_FINITE = "the model's logits are not finite: the weights of this policy are damaged"

PROMPT_TOKENS_AT_ONCE = 256  # bounds the logits in memory if a prompt's log-probabilities are requested

# R rows, L columns of the cache, N tokens read, V vocabulary.


@dataclass(eq=False)
class DecodingRow:
    """One prompt and its continuation so far; `emit` is called from the engine's thread."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    adapter: str
    emit: Callable[[Step | BaseException], None]
    shift: Tensor | None = None  # added to the residual stream at each new token [D]
    grammar: Matcher | None = None
    also_ends: tuple[int, ...] = ()  # further token ids that end the text
    is_dropped: bool = False
    output_ids: list[int] = field(default_factory=list)
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        if self.sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.sampling.seed)

    def write(self, token: Token, eos: int) -> None:
        """Append a token and emit it."""
        self.output_ids.append(token.id)
        if self.grammar is not None:
            self.grammar.take(token.id)
        reason = finish_reason(self, eos)
        self.emit(Step((), reason, end=token) if reason == "stop" else Step((token,), reason))


class DecodingBatch:
    """Rows with their shared cache and the logits of their next tokens."""

    def __init__(self, model: Callable[..., Any], eos: int, device: torch.device):
        """model: called like a causal language model, with `adapter_names` and `shifts` (one per row) in addition."""
        self.rows: list[DecodingRow] = []
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
    def admit(self, rows: Sequence[DecodingRow]) -> None:
        """Read the prompts of new rows and add the rows to the batch.

        A row that requests its prompt's log-probabilities has to be admitted alone.
        """
        longest = max(len(row.prompt_ids) for row in rows)
        ids = [[self._eos] * (longest - len(row.prompt_ids)) + list(row.prompt_ids) for row in rows]
        mask_RL = torch.tensor([[0] * (longest - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r in rows])
        cache: Any = DynamicCache()
        read = self._read if rows[0].sampling.prompt_logprobs is None else self._read_with_logprobs
        self._append(rows, cache, mask_RL.to(self._device), read(torch.tensor(ids), mask_RL, cache, rows))
        done = [row for row in rows if row.sampling.max_tokens == 0]
        for row in done:
            row.emit(Step((), "length"))
        self._keep([i for i, row in enumerate(self.rows) if row not in done])

    def _append(self, rows: Sequence[DecodingRow], cache: Any, mask_RL: Tensor, logits_RV: Tensor) -> None:
        if not self.rows:
            self._cache, self._mask_RL, self._logits_RV = cache, mask_RL, logits_RV
        else:
            width = max(mask_RL.shape[1], self._mask_RL.shape[1])
            _join(self._cache, cache, width)
            masks = [F.pad(m, (width - m.shape[1], 0)) for m in (self._mask_RL, mask_RL)]
            self._mask_RL = torch.cat(masks)
            self._logits_RV = torch.cat([self._logits_RV, logits_RV])
        self.rows += rows

    def _read(self, ids_RL: Tensor, mask_RL: Tensor, cache: Any, rows: Sequence[DecodingRow]) -> Tensor:
        shifts = [row.shift for row in rows]
        return self._forward(ids_RL, mask_RL.to(self._device), cache, rows, shifts)[:, -1]

    def _read_with_logprobs(self, ids_RL: Tensor, mask_RL: Tensor, cache: Any, rows: Sequence[DecodingRow]) -> Tensor:
        """Read one row's prompt and emit each token's log-probability; in parts, which bounds the logits in memory."""
        [row], length = rows, ids_RL.shape[1]
        assert row.sampling.prompt_logprobs is not None
        tokens = [Token(int(row.prompt_ids[0]))]
        for start in range(0, length, PROMPT_TOKENS_AT_ONCE):
            end = min(start + PROMPT_TOKENS_AT_ONCE, length)
            shifts = [row.shift if end == length else None]
            mask_1L = mask_RL[:, :end].to(self._device)
            logits_NV = self._forward(ids_RL[:, start:end], mask_1L, cache, rows, shifts, keep=end - start)[0]
            following = [int(token) for token in row.prompt_ids[start + 1 : end + 1]]
            tokens += tokens_with_logprobs(logits_NV[: len(following)], following, row.sampling.prompt_logprobs)
        if _are_not_finite(logits_NV).any():
            raise RequestFault(NOT_FINITE)
        row.emit(Step((), prompt=tuple(tokens)))
        return logits_NV[-1:]

    @torch.inference_mode()
    def step(self) -> None:
        """Write one token in every row; remove rows that are done, dropped or failed."""
        self._drop_not_finite()
        self._keep([i for i, row in enumerate(self.rows) if self._continues(self._logits_RV[i], row)])
        if self.rows:
            self._mask_RL = F.pad(self._mask_RL, (0, 1), value=1)
            ids_R1 = torch.tensor([[row.output_ids[-1]] for row in self.rows])
            shifts = [row.shift for row in self.rows]
            self._logits_RV = self._forward(ids_R1, self._mask_RL, self._cache, self.rows, shifts)[:, -1]

    def _continues(self, logits_V: Tensor, row: DecodingRow) -> bool:
        """Write a row's next token; return whether others follow. An error here affects this row only."""
        if row.is_dropped:
            return False
        try:
            row.write(pick(logits_V, row, self._eos), self._eos)
        except Exception as error:
            row.emit(recoverable(error))
            return False
        return finish_reason(row, self._eos) is None

    def _drop_not_finite(self) -> None:
        """End rows whose logits are not finite, as with a damaged adapter; the others continue."""
        bad = _are_not_finite(self._logits_RV).tolist()
        for row, is_bad in zip(self.rows, bad, strict=True):
            if is_bad:
                row.emit(RequestFault(NOT_FINITE))
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
        empty = int(mask_RL.any(dim=0).int().argmax())  # leading columns that are padding in all remaining rows
        self._mask_RL = mask_RL[:, empty:]
        for layer in self._cache.layers:
            layer.keys, layer.values = (kv[index][:, :, empty:] for kv in (layer.keys, layer.values))

    def _forward(
        self,
        ids_RN: Tensor,
        mask_RL: Tensor,
        cache: Any,
        rows: Sequence[DecodingRow],
        shifts: Sequence[Tensor | None],
        *,
        keep: int = 1,
    ) -> Tensor:
        """Read tokens and return the logits after the last `keep` of them."""
        position_RL = (mask_RL.cumsum(dim=1) - 1).clamp(min=0)
        out = self._model(
            input_ids=ids_RN.to(self._device),
            attention_mask=mask_RL,
            position_ids=position_RL[:, -ids_RN.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
            adapter_names=[row.adapter for row in rows],
            shifts=shifts,
        )
        logits_RNV: Tensor = out.logits[:, -keep:].float()
        return logits_RNV


def _are_not_finite(logits_NV: Tensor) -> Tensor:
    """Return which positions have NaN or +inf logits [N]; -inf is fine, as some models use it to forbid tokens."""
    return (logits_NV.isnan() | logits_NV.isposinf()).any(dim=1)


def _join(cache: Any, joining: Any, width: int) -> None:
    for layer, new in zip(cache.layers, joining.layers, strict=True):
        for name in ("keys", "values"):
            parts = [getattr(source, name) for source in (layer, new)]
            padded = [F.pad(part, (0, 0, width - part.shape[2], 0)) for part in parts]
            setattr(layer, name, torch.cat(padded))


def recoverable(error: Exception) -> Exception:
    """Return the error to report for a failed request. Raises an error that the device does not recover from."""
    if isinstance(error, UserError | RequestFault):
        return error
    if isinstance(error, torch.AcceleratorError):
        raise error
    log.error("a request failed; the engine continues", exc_info=error)
    return RequestFault("the engine could not answer this request: see the server's log")


def finish_reason(row: DecodingRow, eos: int) -> str | None:
    """Return why a row is done: `stop` after EOS, `length` after its last token; None if it is not done."""
    if row.output_ids and row.output_ids[-1] in (eos, *row.also_ends) and not row.sampling.ignore_eos:
        return "stop"
    return "length" if len(row.output_ids) >= row.sampling.max_tokens else None
