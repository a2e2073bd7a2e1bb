"""OpenAI's shapes: completions, their chunks, and errors."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.serve.requests import Continuation, TextChunk, TextToken

DONE = "data: [DONE]\n\n"  # the end of every stream


@dataclass
class ResponseShape:
    """The shape of one response, chat or plain, whole or in chunks."""

    chat: bool
    continuation: Continuation
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, *, chunk: bool) -> dict[str, Any]:
        """Return the fields that every response and chunk begins with; those of `told` besides the model are ours."""
        kind = "chat.completion" if self.chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}",
            "object": f"{kind}.chunk" if chunk and self.chat else kind,
            "created": self.created,
            **self.continuation.asked.told,
        }

    def whole(self, pieces: Sequence[TextChunk]) -> dict[str, Any]:
        """Put all pieces into one response."""
        choices = []
        for index in range(len(self.continuation.runs)):
            mine = [piece for piece in pieces if piece.index == index]
            text = "".join(piece.text for piece in mine)
            content: dict[str, Any] = (
                {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            )
            tokens = [token for piece in mine for token in piece.tokens]
            reason = mine[-1].finish_reason if mine else None
            choices.append({"index": index, **content, "logprobs": self.logprobs(tokens), "finish_reason": reason})
        return {**self.head(chunk=False), "choices": choices, "usage": self.usage(pieces)}

    def chunk(self, piece: TextChunk) -> dict[str, Any]:
        """Return one chunk."""
        content: dict[str, Any] = {"delta": {"content": piece.text}} if self.chat else {"text": piece.text}
        choice = {
            "index": piece.index,
            **content,
            "logprobs": self.logprobs(piece.tokens),
            "finish_reason": piece.finish_reason,
        }
        return {**self.head(chunk=True), "choices": [choice]}

    def usage(self, pieces: Sequence[TextChunk]) -> dict[str, Any]:
        prompt = self.continuation.prompt_tokens
        written = sum(piece.num_written for piece in pieces)
        cached = sum(piece.cached_tokens for piece in pieces)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def logprobs(self, tokens: Sequence[TextToken]) -> dict[str, Any] | None:
        """Return the tokens of a text; `bytes` are what each adds to it, so that joined they are the text."""
        if self.continuation.sampling.logprobs is None:
            return None
        if self.chat:
            return {"content": [_chat_token(each) for each in tokens], "refusal": None}
        return {
            "tokens": [each.name for each in tokens],
            "token_logprobs": [each.token.logprob for each in tokens],
            "top_logprobs": [_likeliest(each) for each in tokens],
            "text_offset": [each.offset for each in tokens],
        }


def _likeliest(written: TextToken) -> dict[str, float] | None:
    """Return the likeliest tokens and the one that was written; None for a prompt's first, which follows nothing."""
    if written.token.logprob is None:
        return None
    ordered = [(name, logprob) for name, _, logprob in written.top] + [(written.name, written.token.logprob)]
    return {**dict(ordered), **dict(reversed(ordered))}  # of two tokens with one name, the likelier


def _chat_token(written: TextToken) -> dict[str, Any]:
    top = [{"token": name, "bytes": list(text), "logprob": logprob} for name, text, logprob in written.top]
    return {
        "token": written.name,
        "bytes": list(written.text),
        "logprob": written.token.logprob,
        "top_logprobs": top,
    }


async def events(
    answer: ResponseShape, pieces: AsyncIterator[TextChunk], *, include_usage: bool, continuous_usage: bool
) -> AsyncIterator[str]:
    """Yield server-sent events: chunks, the usage where it is asked for, and [DONE].

    continuous_usage: tell with every chunk what was used until then.
    """

    def used() -> dict[str, Any]:
        return {"usage": answer.usage(told)} if continuous_usage else {}

    told: list[TextChunk] = []
    if answer.chat:
        for index in range(len(answer.continuation.runs)):
            role = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
            yield event({**answer.head(chunk=True), "choices": [role], **used()})
    async for piece in pieces:
        told.append(piece)
        yield event({**answer.chunk(piece), **used()})
    if include_usage:
        yield event({**answer.head(chunk=True), "choices": [], "usage": answer.usage(told)})
    yield DONE


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def error_body(message: str, *, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
