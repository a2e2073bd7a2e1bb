"""OpenAI's JSON formats: completions, their chunks, and errors."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.serve.requests import Continuation, TextChunk, TextToken

DONE = "data: [DONE]\n\n"  # the last event of every stream


@dataclass
class ResponseShape:
    """Formats one response: a chat or plain completion, whole or in chunks."""

    chat: bool
    continuation: Continuation
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, *, chunk: bool) -> dict[str, Any]:
        """Return the first fields of every response and chunk; except for `model`, the policy's fields are our own."""
        kind = "chat.completion" if self.chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}",
            "object": f"{kind}.chunk" if chunk and self.chat else kind,
            "created": self.created,
            **self.continuation.resolved.response_fields,
        }

    def whole(self, chunks: Sequence[TextChunk]) -> dict[str, Any]:
        """Return one response with all chunks."""
        choices = []
        for index in range(len(self.continuation.runs)):
            own_chunks = [chunk for chunk in chunks if chunk.index == index]
            text = "".join(chunk.text for chunk in own_chunks)
            content: dict[str, Any] = (
                {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            )
            tokens = [token for chunk in own_chunks for token in chunk.tokens]
            reason = own_chunks[-1].finish_reason if own_chunks else None
            choices.append({"index": index, **content, "logprobs": self.logprobs(tokens), "finish_reason": reason})
        return {**self.head(chunk=False), "choices": choices, "usage": self.usage(chunks)}

    def chunk(self, chunk: TextChunk) -> dict[str, Any]:
        """Return one chunk of a stream."""
        content: dict[str, Any] = {"delta": {"content": chunk.text}} if self.chat else {"text": chunk.text}
        choice = {
            "index": chunk.index,
            **content,
            "logprobs": self.logprobs(chunk.tokens),
            "finish_reason": chunk.finish_reason,
        }
        return {**self.head(chunk=True), "choices": [choice]}

    def usage(self, chunks: Sequence[TextChunk]) -> dict[str, Any]:
        """Return the token counts up to the last of these chunks."""
        prompt = self.continuation.prompt_tokens
        generated = sum(chunk.num_generated for chunk in chunks)
        cached = sum(chunk.cached_tokens for chunk in chunks)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def logprobs(self, tokens: Sequence[TextToken]) -> dict[str, Any] | None:
        """Return the log-probabilities of a text's tokens; the tokens' `bytes`, joined, are the text."""
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


def _likeliest(token: TextToken) -> dict[str, float] | None:
    """Return the likeliest tokens and the actual one; None for a prompt's first token, which has no context."""
    if token.token.logprob is None:
        return None
    ordered = [(name, logprob) for name, _, logprob in token.top] + [(token.name, token.token.logprob)]
    return {**dict(ordered), **dict(reversed(ordered))}  # if two tokens have the same name, the likelier one


def _chat_token(token: TextToken) -> dict[str, Any]:
    top = [{"token": name, "bytes": list(text), "logprob": logprob} for name, text, logprob in token.top]
    return {
        "token": token.name,
        "bytes": list(token.text),
        "logprob": token.token.logprob,
        "top_logprobs": top,
    }


async def events(
    shape: ResponseShape, chunks: AsyncIterator[TextChunk], *, include_usage: bool, continuous_usage: bool
) -> AsyncIterator[str]:
    """Yield server-sent events: chunks, the usage if it is requested, and [DONE].

    continuous_usage: whether every chunk states the usage so far.
    """

    def usage_so_far() -> dict[str, Any]:
        return {"usage": shape.usage(sent)} if continuous_usage else {}

    sent: list[TextChunk] = []
    if shape.chat:
        for index in range(len(shape.continuation.runs)):
            role = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
            yield event({**shape.head(chunk=True), "choices": [role], **usage_so_far()})
    async for chunk in chunks:
        sent.append(chunk)
        yield event({**shape.chunk(chunk), **usage_so_far()})
    if include_usage:
        yield event({**shape.head(chunk=True), "choices": [], "usage": shape.usage(sent)})
    yield DONE


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def error_body(message: str, *, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
