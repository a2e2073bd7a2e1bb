"""Turning a stream of tokens into a stream of text, which waits for whole characters and for stop strings."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.serve.engines import Token
from pipelines.serve.requests.token_bytes import TokenBytes


@dataclass(frozen=True)
class TextToken:
    """A token with the bytes that it adds to the text. offset: the number of characters of the text before it.

    top: name, bytes and log-probability of the likeliest tokens at its position.
    """

    token: Token
    name: str
    text: bytes
    top: tuple[tuple[str, bytes, float], ...] = ()
    offset: int = 0


TextPiece = tuple[str, tuple[TextToken, ...]]  # text that will not change any more, with its tokens


class TextStream:
    """The text of one continuation. `is_stopped` once a stop string was found, which text and tokens leave out."""

    def __init__(
        self,
        token_bytes: TokenBytes,
        stops: Sequence[str],
        *,
        lead: str = "",
        continues_text: bool = False,
        min_tokens: int = 0,
    ):
        """lead: a prefix to remove from the text; continues_text: whether the tokens continue an earlier text;
        min_tokens: stop strings are ignored in so many tokens."""
        self._token_bytes, self._lead = token_bytes, lead.encode()
        self._stops = tuple(stop.encode() for stop in stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting: list[TextToken] = []
        self._is_first, self._characters, self._unstoppable = not continues_text, 0, min_tokens
        self.is_stopped = False

    def repeat(self, tokens: Sequence[Token]) -> TextPiece:
        """Return the text of a prompt, without looking for stop strings or the lead."""
        self._is_first = True
        self._waiting += map(self._text_token, tokens)
        return self._release(sum(len(each.text) for each in self._waiting))

    def feed(self, token: Token) -> TextPiece:
        """Take the next token and return the text that can no longer change."""
        self._waiting.append(self._text_token(token))
        self._unstoppable -= 1
        self._remove_lead()
        if self._lead:
            return "", ()
        if self._unstoppable >= 0:
            return self._release(sum(len(each.text) for each in self._waiting))
        held = b"".join(each.text for each in self._waiting)
        if stops_at := [at for stop in self._stops if (at := held.find(stop)) >= 0]:
            self.is_stopped = True
            self._cut(min(stops_at))
            return self._release(min(stops_at))
        return self._release(len(held) - self._undecided(held))

    def rest(self) -> TextPiece:
        """Return the text that is still held back, after the last token."""
        self._lead = b""
        text, tokens = self._release(sum(len(each.text) for each in self._waiting))
        return text + self._decoder.decode(b"", True), tokens

    def _text_token(self, token: Token) -> TextToken:
        is_first = self._is_first

        def bytes_of(token_id: int) -> bytes:
            return self._token_bytes.bytes_of(token_id, is_first=is_first)

        top = tuple((self._token_bytes.name(id), bytes_of(id), logprob) for id, logprob in token.top)
        text = bytes_of(token.id)
        self._is_first = is_first and not self._token_bytes.bytes_of(token.id)  # control tokens do not begin the text
        return TextToken(token, self._token_bytes.name(token.id), text, top)

    def _remove_lead(self) -> None:
        held, lead = b"".join(each.text for each in self._waiting), self._lead
        if len(held) < len(lead) and lead.startswith(held):
            return  # not decided yet
        self._lead = b""
        if held.startswith(lead):
            for index, each in enumerate(self._waiting):
                self._waiting[index], lead = _without(each, lead), lead[len(each.text) :]

    def _cut(self, length: int) -> None:
        """Drop the waiting text after this many bytes."""
        kept = []
        for each in self._waiting:
            if length > 0:
                kept.append(replace(each, text=each.text[:length]))
            length -= len(each.text)
        self._waiting = kept

    def _release(self, certain: int) -> TextPiece:
        """Return the waiting tokens within this many bytes, with their text."""
        texts, tokens = [], []
        while self._waiting and len(self._waiting[0].text) <= certain:
            each = self._waiting.pop(0)
            certain -= len(each.text)
            tokens.append(replace(each, offset=self._characters))
            texts.append(self._decoder.decode(each.text))
            self._characters += len(texts[-1])
        return "".join(texts), tuple(tokens)

    def _undecided(self, held: bytes) -> int:
        """Return how many of the last bytes could be the beginning of a stop string."""
        longest = min(len(held), max((len(stop) - 1 for stop in self._stops), default=0))
        return next((n for n in range(longest, 0, -1) if any(s.startswith(held[-n:]) for s in self._stops)), 0)


def _without(each: TextToken, lead: bytes) -> TextToken:
    """Return a token, and the likeliest ones at its position, without the part of the lead that they begin with."""
    held = lead[: len(each.text)]
    if not held:
        return each
    words = held.decode("utf-8", "replace")
    top = tuple((name.removeprefix(words), text.removeprefix(held), logprob) for name, text, logprob in each.top)
    return replace(each, text=each.text.removeprefix(held), name=each.name.removeprefix(words), top=top)
