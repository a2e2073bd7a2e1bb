"""Tokens in, text out, as it is written: characters that several tokens spell, and stop strings, are waited for."""

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class TextStream:
    """Decodes one continuation; `stopped` once a stop string was written, which the text never shows."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], *, lead: str = ""):
        """tokenizer: a fast transformers tokenizer; lead: left out where the text begins with it."""
        self._tokenizer = tokenizer.backend_tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stops = tuple(stops)
        self._held, self._lead = "", lead
        self.stopped = False

    def feed(self, token_id: int) -> str:
        """Return the text that has become certain with this token."""
        self._held += self._decoder.step(self._tokenizer, token_id) or ""
        if self._lead and len(self._held) >= len(self._lead):
            self._held, self._lead = self._held.removeprefix(self._lead), ""
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        certain = 0 if self._lead else len(self._held) - self._undecided()
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def rest(self) -> str:
        """Return what was held back, when nothing more is written."""
        text, self._held = self._held, ""
        return text

    def _undecided(self) -> int:
        """Return how many of the last characters may be the beginning of a stop string."""
        longest = min(len(self._held), max((len(stop) - 1 for stop in self._stops), default=0))
        sizes = range(longest, 0, -1)
        return next((n for n in sizes if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)
