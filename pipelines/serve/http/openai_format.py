"""OpenAI's shapes: completions, their chunks, and errors."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.serve.engines import Token
from pipelines.serve.requests import Continuation, Piece


@dataclass
class Answer:
    """The shape of one response, chat or plain, whole or in chunks."""

    chat: bool
    continuation: Continuation
    tokenizer: Any
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

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
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
            choices.append({"index": index, **content, "logprobs": self.logprobs(tokens, 0), "finish_reason": reason})
        return {**self.head(chunk=False), "choices": choices, "usage": self.usage(pieces)}

    def chunk(self, piece: Piece, offset: int) -> dict[str, Any]:
        """Return one chunk; offset: characters of this continuation before it."""
        content: dict[str, Any] = {"delta": {"content": piece.text}} if self.chat else {"text": piece.text}
        choice = {
            "index": piece.index,
            **content,
            "logprobs": self.logprobs(piece.tokens, offset),
            "finish_reason": piece.finish_reason,
        }
        return {**self.head(chunk=True), "choices": [choice]}

    def usage(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        prompt = self.continuation.prompt_tokens
        written = sum(len(piece.tokens) for piece in pieces)
        cached = sum(piece.cached_tokens for piece in pieces)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def logprobs(self, tokens: Sequence[Token], offset: int) -> dict[str, Any] | None:
        if self.continuation.runs[0].sampling.logprobs is None:
            return None
        if self.chat:
            return {"content": [self._chat_token(token) for token in tokens], "refusal": None}
        texts = [self._text(token.id) for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._text(id): logprob for id, logprob in token.top} for token in tokens],
            "text_offset": [offset + sum(map(len, texts[:i])) for i in range(len(texts))],
        }

    def _chat_token(self, token: Token) -> dict[str, Any]:
        top = [{**self._named(id), "logprob": logprob} for id, logprob in token.top]
        return {**self._named(token.id), "logprob": token.logprob, "top_logprobs": top}

    def _named(self, token_id: int) -> dict[str, Any]:
        text = self._text(token_id)
        return {"token": text, "bytes": list(text.encode())}

    def _text(self, token_id: int) -> str:
        return str(self.tokenizer.decode([token_id]))


async def events(answer: Answer, pieces: AsyncIterator[Piece], *, include_usage: bool) -> AsyncIterator[str]:
    """Yield server-sent events: chunks, the usage where it is asked for, and [DONE]."""
    offsets: dict[int, int] = {}
    told: list[Piece] = []
    if answer.chat:
        for index in range(len(answer.continuation.runs)):
            role = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
            yield event({**answer.head(chunk=True), "choices": [role]})
    async for piece in pieces:
        yield event(answer.chunk(piece, offsets.get(piece.index, 0)))
        offsets[piece.index] = offsets.get(piece.index, 0) + len(piece.text)
        told.append(piece)
    if include_usage:
        yield event({**answer.head(chunk=True), "choices": [], "usage": answer.usage(told)})
    yield "data: [DONE]\n\n"


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def error_body(message: str, *, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
