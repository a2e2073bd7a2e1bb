"""Tokens in, text out, as it is written: characters that several tokens spell, and stop strings, are waited for."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.serve.engines import Token
from pipelines.serve.requests.token_bytes import TokenBytes


@dataclass(frozen=True)
class TextToken:
    """A token with what it adds to the text, in bytes, and the characters of the text before it.

    top: name, bytes and log-probability of the likeliest tokens in its place.
    """

    token: Token
    name: str
    text: bytes
    top: tuple[tuple[str, bytes, float], ...] = ()
    offset: int = 0


TextPiece = tuple[str, tuple[TextToken, ...]]  # text that is certain, with the tokens that spell it


class TextStream:
    """Spells one continuation; `stopped` once a stop string was written, which neither text nor tokens show."""

    def __init__(
        self,
        spelling: TokenBytes,
        stops: Sequence[str],
        *,
        lead: str = "",
        is_begun: bool = False,
        min_tokens: int = 0,
    ):
        """lead: left out where the text begins with it; is_begun: whether the tokens go on with a text before them;
        min_tokens: so many tokens no stop string ends."""
        self._spelling, self._lead = spelling, lead.encode()
        self._stops = tuple(stop.encode() for stop in stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting: list[TextToken] = []
        self._is_first, self._characters, self._unstopped = not is_begun, 0, min_tokens
        self.stopped = False

    def repeat(self, tokens: Sequence[Token]) -> TextPiece:
        """Return the text of a prompt, which nothing is looked for in."""
        self._is_first = True
        self._waiting += map(self._spelled, tokens)
        return self._tell(sum(len(each.text) for each in self._waiting))

    def feed(self, token: Token) -> TextPiece:
        """Return what has become certain with this token."""
        self._waiting.append(self._spelled(token))
        self._unstopped -= 1
        self._leave_out_the_lead()
        if self._lead:
            return "", ()
        if self._unstopped >= 0:
            return self._tell(sum(len(each.text) for each in self._waiting))
        held = b"".join(each.text for each in self._waiting)
        if found := [at for stop in self._stops if (at := held.find(stop)) >= 0]:
            self.stopped = True
            self._cut(min(found))
            return self._tell(min(found))
        return self._tell(len(held) - self._undecided(held))

    def rest(self) -> TextPiece:
        """Return what was held back, when nothing more is written."""
        self._lead = b""
        text, tokens = self._tell(sum(len(each.text) for each in self._waiting))
        return text + self._decoder.decode(b"", True), tokens

    def _spelled(self, token: Token) -> TextToken:
        first = self._is_first

        def spelled(token_id: int) -> bytes:
            return self._spelling.bytes_of(token_id, is_first=first)

        top = tuple((self._spelling.name(id), spelled(id), logprob) for id, logprob in token.top)
        text = spelled(token.id)
        self._is_first = first and not self._spelling.bytes_of(token.id)  # no text begins with a token of control
        return TextToken(token, self._spelling.name(token.id), text, top)

    def _leave_out_the_lead(self) -> None:
        held, lead = b"".join(each.text for each in self._waiting), self._lead
        if len(held) < len(lead) and lead.startswith(held):
            return  # not decided yet
        self._lead = b""
        if held.startswith(lead):
            for place, each in enumerate(self._waiting):
                self._waiting[place], lead = _without(each, lead), lead[len(each.text) :]

    def _cut(self, length: int) -> None:
        """Drop what is written after these bytes."""
        kept = []
        for each in self._waiting:
            if length > 0:
                kept.append(replace(each, text=each.text[:length]))
            length -= len(each.text)
        self._waiting = kept

    def _tell(self, certain: int) -> TextPiece:
        """Give away the tokens that lie within so many bytes."""
        texts, tokens = [], []
        while self._waiting and len(self._waiting[0].text) <= certain:
            each = self._waiting.pop(0)
            certain -= len(each.text)
            tokens.append(replace(each, offset=self._characters))
            texts.append(self._decoder.decode(each.text))
            self._characters += len(texts[-1])
        return "".join(texts), tuple(tokens)

    def _undecided(self, held: bytes) -> int:
        """Return how many of the last bytes may be the beginning of a stop string."""
        longest = min(len(held), max((len(stop) - 1 for stop in self._stops), default=0))
        return next((n for n in range(longest, 0, -1) if any(s.startswith(held[-n:]) for s in self._stops)), 0)


def _without(each: TextToken, lead: bytes) -> TextToken:
    """Return a token without the part of the lead that it holds; so for those in its place that begin with it."""
    held = lead[: len(each.text)]
    if not held:
        return each
    words = held.decode("utf-8", "replace")
    top = tuple((name.removeprefix(words), text.removeprefix(held), logprob) for name, text, logprob in each.top)
    return replace(each, text=each.text.removeprefix(held), name=each.name.removeprefix(words), top=top)
