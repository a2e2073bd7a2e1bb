"""What each token adds to a text, in bytes: one character may be spelled by several tokens."""

import json
import re
from functools import lru_cache
from typing import Any

BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a byte of a character that a vocabulary does not have


class TokenBytes:
    """The bytes of a tokenizer's tokens. Special tokens, and ids without a token, add nothing to a text.

    Bytes and not characters: a decoder that is told tokens one by one gives up where bytes do not add up to
    characters, as they need not in what a model writes.
    """

    def __init__(self, tokenizer: Any):
        """tokenizer: a fast transformers tokenizer."""
        self._backend = tokenizer.backend_tokenizer
        kinds = _decoders(self._backend.decoder)
        self._is_byte_level, self._has_bytes = kinds == ["ByteLevel"], "ByteFallback" in kinds
        self._added = self._backend.get_added_tokens_decoder()
        anchor = self._backend.encode("a", add_special_tokens=False).ids
        self._anchor = anchor, self._backend.decode(anchor)
        self._known: dict[tuple[int, bool], bytes] = {}

    def bytes_of(self, token_id: int, *, is_first: bool = False) -> bytes:
        """Return what a token adds to a text; is_first: where the text begins with it, which some drop a space for."""
        key = token_id, is_first
        if key not in self._known:
            self._known[key] = self._spelled(token_id, is_first)
        return self._known[key]

    def name(self, token_id: int) -> str:
        """Return how a token is called: its text, or its bytes in words where they are no characters alone."""
        added = self._added.get(token_id)
        if added is not None:
            return str(added.content)
        spelled = self.bytes_of(token_id)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)

    def _spelled(self, token_id: int, is_first: bool) -> bytes:
        piece = self._backend.id_to_token(token_id)
        added = self._added.get(token_id)
        if piece is None or (added is not None and added.special):
            return b""
        if self._has_bytes and added is None and (byte := BYTE.fullmatch(piece)):
            return bytes.fromhex(byte[1])
        if self._is_byte_level:
            table = _bytes_of_characters()
            return bytes(table[c] for c in piece) if all(c in table for c in piece) else piece.encode()
        return self._added_to_a_text(token_id, is_first).encode()

    def _added_to_a_text(self, token_id: int, is_first: bool) -> str:
        if is_first:
            return str(self._backend.decode([token_id]))
        ids, before = self._anchor
        text = str(self._backend.decode([*ids, token_id]))
        return text[len(before) :] if text.startswith(before) else str(self._backend.decode([token_id]))


def _decoders(decoder: Any) -> list[str]:
    """Return the kinds of a decoder's steps."""
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    return [step["type"] for step in state.get("decoders", [state])]


@lru_cache(maxsize=1)
def _bytes_of_characters() -> dict[str, int]:
    """Return the byte of each character in a byte-level vocabulary: itself where it can be printed."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(others)}
