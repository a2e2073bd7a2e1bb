"""Bulk tokenization, with the position at which each token starts and ends in its text.

The tokenizers library spends a sixth of its time on character positions. Tokens of Qwen and similar tokenizers are
plain bytes in order, so a table of their lengths gives the same positions; for all others, the library computes them.
"""

import json
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokensWithOffsets:
    """Token ids of a text [T], and two counts that take the index of a character.

    ending_by: number of tokens that end before this character. starting_before: number of tokens that start before it.
    """

    ids: NDArray[np.int32]
    ending_by: Callable[[int], int]
    starting_before: Callable[[int], int]


def place_tokens(texts: Sequence[str], tokenizer: Any) -> list[TokensWithOffsets]:
    """Tokenize texts of any length with a fast tokenizer, without special tokens."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    lengths = _token_bytes(tokenizer, len(tokenizer))
    if lengths is None:
        return [_by_characters(encoding) for encoding in backend.encode_batch(list(texts), add_special_tokens=False)]
    encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [
        _by_bytes(encoding.ids, text, lengths) or _by_characters(backend.encode(text, add_special_tokens=False))
        for encoding, text in zip(encodings, texts, strict=True)
    ]


def _by_characters(encoding: Any) -> TokensWithOffsets:
    tokens, span = range(len(encoding)), encoding.token_to_chars
    return TokensWithOffsets(
        np.asarray(encoding.ids, dtype=np.int32),
        ending_by=lambda character: bisect_right(tokens, character, key=lambda t: span(t)[1]),
        starting_before=lambda character: bisect_left(tokens, character, key=lambda t: span(t)[0]),
    )


def _by_bytes(ids: list[int], text: str, lengths: NDArray[np.int64]) -> TokensWithOffsets | None:
    """Return the tokens with positions from their byte lengths; None if the tokens are not the bytes of the text."""
    as_array = np.asarray(ids, dtype=np.int32)
    ends = lengths[as_array].cumsum()
    is_ascii = text.isascii()
    num_bytes = len(text) if is_ascii else len(text.encode())
    if not ids or ends[-1] != num_bytes or not unicodedata.is_normalized("NFC", text):
        return None
    starts = ends - lengths[as_array]
    place = (lambda c: c) if is_ascii else (lambda c: len(text[:c].encode()))
    return TokensWithOffsets(
        as_array,
        ending_by=lambda character: int(ends.searchsorted(place(character), "right")),
        starting_before=lambda character: int(starts.searchsorted(place(character), "left")),
    )


@lru_cache(maxsize=1)
def _token_bytes(tokenizer: Any, vocab_size: int) -> NDArray[np.int64] | None:
    """Return the number of bytes of each token id [V]; None for a tokenizer that may change the text or its positions.

    vocab_size: `len(tokenizer)`, so that the cache has no outdated table after the vocabulary has grown.
    """
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    byte_level = [s for s in _steps(definition["pre_tokenizer"], "pretokenizers") if s["type"] == "ByteLevel"]
    rewrites = any(step["type"] != "NFC" for step in _steps(definition["normalizer"], "normalizers"))
    trims = any(step.get("trim_offsets") for step in _steps(definition["post_processor"], "processors"))
    if (
        definition["model"]["type"] != "BPE"
        or len(byte_level) != 1
        or byte_level[0]["add_prefix_space"]
        or rewrites
        or trims
    ):
        return None
    lengths = np.zeros(vocab_size, dtype=np.int64)
    for token, number in definition["model"]["vocab"].items():
        lengths[number] = len(token)  # a byte-level vocabulary writes each byte as one character
    for token in definition["added_tokens"]:
        lengths[token["id"]] = len(token["content"].encode())
    return lengths


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return list(part[name]) if part["type"] == "Sequence" else [part]
