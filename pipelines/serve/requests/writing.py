"""Free text: chats and completions become prompts, and what the engine writes becomes text."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from pft_core.encoding import tokenize_prompts
from pft_core.errors import UserError
from pft_core.prompts import render_chat, state_in_message
from pipelines.serve.config import ServeConfig
from pipelines.serve.engines import Backend, GenerationRequest, Sampling, Token
from pipelines.serve.metrics import Metrics
from pipelines.serve.requests.asking import Asked, Asker, TooLongError
from pipelines.serve.requests.bodies import ChatBody, CompletionBody, Message, SamplingBody
from pipelines.serve.requests.text_stream import TextStream

LEAST_TEMPERATURE = 1e-5

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """A part of one continuation (`index` of n): text that has become certain, and the tokens that were written."""

    index: int
    text: str
    tokens: tuple[Token, ...]
    finish_reason: str | None
    cached_tokens: int = 0


@dataclass(frozen=True)
class Continuation:
    """Prompts on their way: what is asked of the engine, n times each."""

    asked: Asked
    runs: tuple[GenerationRequest, ...]  # of the first prompt all n, then of the next
    prompt_tokens: int
    stops: tuple[str, ...]
    lead: str  # what the frame writes before an answer, and is no part of it


class Writer:
    """Answers /v1/chat/completions and /v1/completions. Raises UserError for what a client got wrong."""

    def __init__(self, config: ServeConfig, asker: Asker, backend: Backend, metrics: Metrics):
        self._config, self._asker, self._backend, self._metrics = config, asker, backend, metrics

    @property
    def _tokenizer(self) -> Any:
        return self._asker.catalog.tokenizer

    async def chat(self, body: ChatBody) -> Continuation:
        """Return what a chat asks of the engine."""
        asked = await self._asker.asked(body.model, body.preference)
        return self.answer(body, asked)

    def answer(self, body: ChatBody, asked: Asked) -> Continuation:
        """Return what a chat asks, where it is known who is asked."""
        self._refuse_mixed(asked)
        return self._continuation(body, asked, self._chat_ids(body.messages, asked))

    async def complete(self, body: CompletionBody) -> Continuation:
        """Return what a plain completion asks; a preference is stated where the policy's style puts it."""
        asked = await self._asker.asked(body.model, body.preference)
        self._refuse_mixed(asked)
        return self._continuation(body, asked, *self._prompts(body.prompt, asked))

    def _prompts(self, prompt: str | list[int] | list[str], asked: Asked) -> list[TokenIds]:
        texts = [prompt] if isinstance(prompt, str) else [each for each in prompt if isinstance(each, str)]
        if texts:
            return [self._ids(state_in_message(text, asked.lines, asked.policy.ref.style)) for text in texts]
        if asked.lines:
            raise UserError("prompt: a preference is stated in text, so give the prompt as text")
        ids = tuple(int(token) for token in prompt)
        if max(ids) >= len(self._tokenizer):
            raise UserError(f"prompt: {max(ids)} is no token id: the vocabulary has {len(self._tokenizer)}")
        return [ids]

    async def pieces(self, continuation: Continuation, *, stream: bool) -> AsyncIterator[Piece]:
        """Run all continuations at once and yield their pieces; stream: as they come."""
        self._metrics.tokens.labels("prompt").inc(continuation.prompt_tokens)
        queue: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()

        async def run(index: int) -> None:
            try:
                async with aclosing(self._run(continuation, index, stream)) as pieces:  # type: ignore[type-var]
                    async for piece in pieces:
                        queue.put_nowait(piece)
                queue.put_nowait(None)
            except Exception as error:  # it belongs to the reader, whatever it is
                queue.put_nowait(error)

        tasks = [asyncio.create_task(run(index)) for index in range(len(continuation.runs))]
        try:
            left = len(tasks)
            while left:
                piece = await queue.get()
                if isinstance(piece, BaseException):
                    raise piece
                if piece is None:
                    left -= 1
                else:
                    self._metrics.tokens.labels("completion").inc(len(piece.tokens))
                    self._metrics.tokens.labels("cached").inc(piece.cached_tokens)
                    yield piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, continuation: Continuation, index: int, stream: bool) -> AsyncIterator[Piece]:
        decoder = TextStream(self._tokenizer, continuation.stops, lead=continuation.lead)
        # A stop string ends the work as soon as it is written.
        request = replace(continuation.runs[index], stream=stream or bool(continuation.stops))
        steps: Any = self._backend.generate(request, continuation.asked.policy.source)
        async with aclosing(steps):
            async for step in steps:
                text, tokens = "", []
                for token in step.tokens:
                    tokens.append(token)
                    text += decoder.feed(token.id)
                    if decoder.stopped:
                        break
                reason = "stop" if decoder.stopped else step.finish_reason
                if reason is not None and not decoder.stopped:
                    text += decoder.rest()
                yield Piece(index, text, tuple(tokens), reason, step.cached_tokens)
                if reason is not None:
                    return

    def _refuse_mixed(self, asked: Asked) -> None:
        if len(asked.parts) > 1:
            raise UserError(
                "preference: text between two poles needs a recipe with `ends`; /v1/choose mixes probabilities instead"
            )

    def _chat_ids(self, messages: Sequence[Message], asked: Asked) -> TokenIds:
        """Tokenise a chat: the last message holds the preference, earlier ones stand before it."""
        style = asked.policy.ref.style
        last = state_in_message(messages[-1].text, asked.lines, style)
        if len(messages) > 1 and not style.frame.answer_lead:  # a chat template's frame
            turns = [{"role": m.role, "content": m.text} for m in messages[:-1]] + [{"role": "user", "content": last}]
            try:
                text = render_chat(self._tokenizer, turns)
            except Exception as error:  # a template is code of its own, and refuses as it likes
                raise UserError(f"messages: the model's chat template refuses them ({error})") from None
            return self._ids(text)
        before = ""
        for message in messages[:-1]:
            frame = style.frame
            before += {
                "user": frame.opening + message.text + frame.closing,
                "assistant": frame.answer_lead + message.text + "\n",
            }.get(message.role, message.text + "\n")
        return self._ids(before + style.frame.opening + last + style.frame.closing)

    def _ids(self, text: str) -> TokenIds:
        (ids,) = tokenize_prompts([text], self._tokenizer)
        return tuple(int(token) for token in ids)

    def _continuation(self, body: SamplingBody, asked: Asked, *prompts: TokenIds) -> Continuation:
        if not all(prompts):
            raise UserError("prompt: holds no token: give some text")
        count, most = (body.n or 1) * len(prompts), self._config.limits.completions
        if count > most:
            raise UserError(f"n={body.n or 1} of {len(prompts)} prompts: this server writes {most} at once")
        choices = self._choices(body, asked)
        runs = tuple(run for prompt in prompts for run in self._runs(body, prompt, choices, asked))
        return Continuation(asked, runs, sum(map(len, prompts)), tuple(body.stops), _lead(body, asked))

    def _runs(
        self, body: SamplingBody, prompt: TokenIds, choices: tuple[TokenIds, ...], asked: Asked
    ) -> Iterator[GenerationRequest]:
        sampling = Sampling(
            max_tokens=self._max_tokens(body, len(prompt)),
            temperature=_temperature(body),
            top_p=body.top_p or 1.0,
            logprobs=_num_logprobs(body),
            choices=choices,
        )
        for i in range(body.n or 1):
            seed = None if body.seed is None else (body.seed + i) % 2**63
            yield GenerationRequest(prompt, replace(sampling, seed=seed), asked.steering)

    def _max_tokens(self, body: SamplingBody, prompt_tokens: int) -> int:
        room = self._config.engine.max_length - prompt_tokens
        wanted = getattr(body, "max_completion_tokens", None) or body.max_tokens
        if room < 1 or (wanted or 0) > room:
            length = self._config.engine.max_length
            raise TooLongError(
                f"prompt and max_tokens: {prompt_tokens} + {wanted or 1} tokens, this server takes {length}"
            )
        if wanted is not None and wanted > self._config.limits.max_tokens:
            raise UserError(f"max_tokens={wanted}: this server writes {self._config.limits.max_tokens}")
        return wanted or min(self._config.limits.default_max_tokens, room)

    def _choices(self, body: SamplingBody, asked: Asked) -> tuple[TokenIds, ...]:
        if body.structured_outputs is None:
            return ()
        texts = [_lead(body, asked) + choice for choice in body.structured_outputs.choice]
        ids = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        special = set(self._tokenizer.all_special_ids)
        for choice, row in zip(body.structured_outputs.choice, ids, strict=True):
            if special.intersection(row):
                raise UserError(f"structured_outputs: {choice[:80]!r} holds a special token, which is never shown")
        return tuple(tuple(map(int, row)) for row in ids)


def _lead(body: SamplingBody, asked: Asked) -> str:
    return asked.policy.ref.style.frame.answer_lead if isinstance(body, ChatBody) else ""


def _temperature(body: SamplingBody) -> float:
    """Return the temperature; one so low that no float could hold the odds is greedy."""
    if body.temperature is None:
        return 1.0
    return 0.0 if body.temperature < LEAST_TEMPERATURE else body.temperature


def _num_logprobs(body: SamplingBody) -> int | None:
    if isinstance(body, ChatBody):
        return (body.top_logprobs or 0) if body.logprobs else None
    return body.logprobs if isinstance(body, CompletionBody) else None
