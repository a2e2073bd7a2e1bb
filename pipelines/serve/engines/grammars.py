"""Grammars that constrain answers, by llguidance, which vLLM ships with and uses for the same purpose."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pft_core.errors import UserError
from pipelines.serve.engines.serving_engine import Grammar

# No whitespace between the parts of a JSON value: a small model may write nothing but whitespace until its last token.
JSON_DEFAULTS = {"whitespace_flexible": False}


class Matcher:
    """One answer's position in its grammar; used by one thread at a time."""

    def __init__(self, matcher: Any, grammar: Grammar):
        """Raises UserError if the grammar is invalid."""
        self._matcher, self._grammar = matcher, grammar
        self._refuse_failed()

    def masked(self, logits_V: Tensor) -> Tensor:
        """Return the logits with -inf for tokens that may not come next; EOS is allowed if the answer may end here.

        Raises UserError if the grammar has grown too large, because llguidance would then let the answer end anywhere.
        """
        import llguidance.numpy

        bits = llguidance.numpy.allocate_token_bitmask(1, len(logits_V))
        llguidance.numpy.fill_next_token_bitmask(self._matcher, bits)
        self._refuse_failed()
        may_V = np.unpackbits(bits.view(np.uint8)[0], bitorder="little")[: len(logits_V)].astype(bool)
        return logits_V.masked_fill(~torch.from_numpy(may_V).to(logits_V.device), float("-inf"))

    def take(self, token_id: int) -> None:
        """Advance by an allowed token. Raises UserError as `masked` does."""
        self._matcher.consume_token(token_id)
        self._refuse_failed()

    def _refuse_failed(self) -> None:
        if self._matcher.is_error():
            raise _refused(self._grammar, self._matcher.get_error())


class Grammars:
    """Makes matchers for one model's tokens; the slow set-up happens with the first matcher."""

    def __init__(self, tokenizer: Any, vocab_size: int):
        """vocab_size: of the model's logits, which may exceed the tokenizer's."""
        self._tokenizer, self._vocab_size = tokenizer, max(vocab_size, len(tokenizer))
        self._tokens: Any = None

    def matcher(self, grammar: Grammar) -> Matcher:
        """Return a matcher at its start. Raises UserError if the grammar is invalid or llguidance is not installed."""
        try:
            import llguidance
            import llguidance.hf
        except ImportError:
            raise UserError(
                "structured_outputs and response_format need llguidance, which this server lacks: "
                "`pip install llguidance`"
            ) from None
        read = _read(grammar, llguidance.LLMatcher)
        if self._tokens is None:
            self._tokens = llguidance.hf.from_tokenizer(self._tokenizer, self._vocab_size)
        return Matcher(llguidance.LLMatcher(self._tokens, read, log_level=0), grammar)


def _read(grammar: Grammar, kinds: Any) -> str:
    """Return a grammar in llguidance's format."""
    try:
        if grammar.kind == "regex":
            return str(kinds.grammar_from_regex(grammar.text))
        return str(kinds.grammar_from_json_schema(grammar.text, defaults=JSON_DEFAULTS))
    except (ValueError, KeyError, TypeError) as error:
        raise _refused(grammar, str(error)) from None


def _refused(grammar: Grammar, reason: str) -> UserError:
    kind = {"json": "the JSON schema", "regex": "the regular expression"}[grammar.kind]
    return UserError(f"{kind} cannot be enforced: {reason.strip().partition(chr(10))[0][:300]}")
