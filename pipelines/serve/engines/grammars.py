"""Grammars that an answer is held to, read by llguidance, which vLLM brings and uses for the same."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pft_core.errors import UserError
from pipelines.serve.engines.engine import Grammar

# Blanks between the parts of a JSON value are left out: a small model may write nothing else until its last token.
JSON_DEFAULTS = {"whitespace_flexible": False}


class Matcher:
    """Where one answer stands in its grammar; used by one thread at a time."""

    def __init__(self, matcher: Any, grammar: Grammar):
        """Raises UserError where the grammar is none."""
        self._matcher, self._grammar = matcher, grammar
        self._refuse_failed()

    def masked(self, logits_V: Tensor) -> Tensor:
        """Return the logits of the tokens that may come next, EOS where the answer may end.

        Raises UserError where the grammar is too large to go on: llguidance would let the answer end anywhere.
        """
        import llguidance.numpy

        bits = llguidance.numpy.allocate_token_bitmask(1, len(logits_V))
        llguidance.numpy.fill_next_token_bitmask(self._matcher, bits)
        self._refuse_failed()
        may_V = np.unpackbits(bits.view(np.uint8)[0], bitorder="little")[: len(logits_V)].astype(bool)
        return logits_V.masked_fill(~torch.from_numpy(may_V).to(logits_V.device), float("-inf"))

    def take(self, token_id: int) -> None:
        """Move on by a token that was allowed. Raises UserError as `masked` does."""
        self._matcher.consume_token(token_id)
        self._refuse_failed()

    def _refuse_failed(self) -> None:
        if self._matcher.is_error():
            raise _refused(self._grammar, self._matcher.get_error())


class Grammars:
    """Makes matchers for one model's tokens; what takes long is done when the first is asked for."""

    def __init__(self, tokenizer: Any, vocab_size: int):
        """vocab_size: of the model's logits, which may be more than the tokenizer has."""
        self._tokenizer, self._vocab_size = tokenizer, max(vocab_size, len(tokenizer))
        self._tokens: Any = None

    def matcher(self, grammar: Grammar) -> Matcher:
        """Return a matcher at its start. Raises UserError for what is no grammar, or where llguidance is absent."""
        try:
            import llguidance
            import llguidance.hf
        except ImportError:
            raise UserError(
                "structured_outputs and response_format: this server has no llguidance: `pip install llguidance`"
            ) from None
        read = _read(grammar, llguidance.LLMatcher)
        if self._tokens is None:
            self._tokens = llguidance.hf.from_tokenizer(self._tokenizer, self._vocab_size)
        return Matcher(llguidance.LLMatcher(self._tokens, read, log_level=0), grammar)


def _read(grammar: Grammar, kinds: Any) -> str:
    """Return a grammar in llguidance's words."""
    try:
        if grammar.kind == "regex":
            return str(kinds.grammar_from_regex(grammar.text))
        return str(kinds.grammar_from_json_schema(grammar.text, defaults=JSON_DEFAULTS))
    except (ValueError, KeyError, TypeError) as error:
        raise _refused(grammar, str(error)) from None


def _refused(grammar: Grammar, reason: str) -> UserError:
    what = {"json": "the JSON schema", "regex": "the regular expression"}[grammar.kind]
    return UserError(f"{what} cannot be followed: {reason.strip().partition(chr(10))[0][:300]}")
