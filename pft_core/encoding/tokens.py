"""Tokenization of prompt and answer as one text.

Label masks come from the character spans of tokens, so a token that holds any character of the answer carries loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pft_core.encoding.token_offsets import TokensWithOffsets, place_tokens
from pft_core.errors import UserError


@dataclass(frozen=True)
class TokenizedAnswer:
    """Prompt and answer tokenized as one text.

    ids [T]; answer_start: index of the answer's first token; scenario_tokens: the range of tokens that a cut may drop.
    """

    ids: NDArray[np.int32]
    answer_start: int
    scenario_tokens: tuple[int, int]


def tokenize(
    texts: Sequence[str], prompt_lengths: Sequence[int], spans: Sequence[tuple[int, int]], tokenizer: Any
) -> list[TokenizedAnswer]:
    """Tokenize texts of prompt + answer in one call.

    texts: prompt and answer as one string. prompt_lengths: characters of the prompt. spans: characters of the scenario.
    A BOS token is prepended if the tokenizer uses one; EOS ends every answer. Raises UserError if the tokenizer has no
    character offsets or no EOS token.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r} gives no character offsets: use a fast tokenizer (tokenizer.json)"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r} has no EOS token: set eos_token in tokenizer_config.json"
        )
    bos, bos_token, eos = leading_bos(tokenizer), tokenizer.bos_token, tokenizer.eos_token_id
    # Chat templates write BOS themselves; a second one would make a prompt that the model has never seen.
    return [
        _tokenized(tokens, n, span, [] if bos_token and text.startswith(bos_token) else bos, eos)
        for tokens, n, span, text in zip(place_tokens(texts, tokenizer), prompt_lengths, spans, texts, strict=True)
    ]


def tokenize_prompts(texts: Sequence[str], tokenizer: Any) -> list[NDArray[np.int32]]:
    """Tokenize prompts for generation, as `tokenize` does but without EOS. Raises the same errors."""
    rows = tokenize(texts, [len(text) for text in texts], [(0, 0)] * len(texts), tokenizer)
    return [row.ids[:-1] for row in rows]


def leading_bos(tokenizer: Any) -> list[int]:
    """Return the BOS id in a list if the tokenizer prepends one, else an empty list."""
    probe = tokenizer("x", add_special_tokens=True)["input_ids"]
    return probe[:1] if tokenizer.bos_token_id is not None and probe[:1] == [tokenizer.bos_token_id] else []


def _tokenized(
    tokens: TokensWithOffsets, prompt_length: int, span: tuple[int, int], bos: list[int], eos: int
) -> TokenizedAnswer:
    first, last = tokens.starting_before(span[0]), tokens.ending_by(span[1])
    shift = len(bos)
    ids = np.concatenate([bos, tokens.ids, [eos]], dtype=np.int32, casting="unsafe")
    return TokenizedAnswer(ids, tokens.ending_by(prompt_length) + shift, (first + shift, max(first, last) + shift))
