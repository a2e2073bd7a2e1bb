"""The bytes that each token adds to a text; one character may take several tokens."""

import json
import re
from functools import lru_cache
from typing import Any

BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # one byte of a character that the vocabulary lacks


class TokenBytes:
    """The bytes of a tokenizer's tokens. Special tokens, and ids without a token, add nothing to a text.

    Bytes rather than characters, because a token-by-token decoder fails if bytes do not form characters, and a model's
    output need not form any.
    """

    def __init__(self, tokenizer: Any):
        """tokenizer: a fast transformers tokenizer."""
        self._backend = tokenizer.backend_tokenizer
        kinds = _decoders(self._backend.decoder)
        self._is_byte_level, self._has_bytes = kinds == ["ByteLevel"], "ByteFallback" in kinds
        self._added = self._backend.get_added_tokens_decoder()
        anchor = self._backend.encode("a", add_special_tokens=False).ids
        self._anchor = anchor, self._backend.decode(anchor)
        self._cache: dict[tuple[int, bool], bytes] = {}

    def bytes_of(self, token_id: int, *, is_first: bool = False) -> bytes:
        """Return the bytes that a token adds. is_first: it begins the text, where some tokenizers drop a space."""
        key = token_id, is_first
        if key not in self._cache:
            self._cache[key] = self._read_bytes(token_id, is_first)
        return self._cache[key]

    def name(self, token_id: int) -> str:
        """Return a token's name: its text, or its escaped bytes if these are not whole characters."""
        added = self._added.get(token_id)
        if added is not None:
            return str(added.content)
        content = self.bytes_of(token_id)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def _read_bytes(self, token_id: int, is_first: bool) -> bytes:
        piece = self._backend.id_to_token(token_id)
        added = self._added.get(token_id)
        if piece is None or (added is not None and added.special):
            return b""
        if self._has_bytes and added is None and (byte := BYTE.fullmatch(piece)):
            return bytes.fromhex(byte[1])
        if self._is_byte_level:
            table = _bytes_of_characters()
            return bytes(table[c] for c in piece) if all(c in table for c in piece) else piece.encode()
        return self._decoded_text(token_id, is_first).encode()

    def _decoded_text(self, token_id: int, is_first: bool) -> str:
        if is_first:
            return str(self._backend.decode([token_id]))
        ids, before = self._anchor
        text = str(self._backend.decode([*ids, token_id]))
        return text[len(before) :] if text.startswith(before) else str(self._backend.decode([token_id]))


def _decoders(decoder: Any) -> list[str]:
    """Return the types of a decoder's steps."""
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    return [step["type"] for step in state.get("decoders", [state])]


@lru_cache(maxsize=1)
def _bytes_of_characters() -> dict[str, int]:
    """Return the byte of each character in a byte-level vocabulary: printable characters stand for themselves."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(others)}
