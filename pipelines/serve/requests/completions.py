"""Free text: turning chats and completions into prompts, and the engine's tokens into text."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from pft_core.encoding import tokenize, tokenize_prompts
from pft_core.errors import UserError
from pft_core.prompts import render_chat, state_in_message
from pipelines.serve.engines import Backend, GenerationRequest, Sampling, Step, Token
from pipelines.serve.metrics import Metrics
from pipelines.serve.requests.in_context import ChoicesInContext, in_context
from pipelines.serve.requests.policy_resolver import PolicyResolver, ResolvedPolicy, TooLongError
from pipelines.serve.requests.schemas import ChatRequest, CompletionRequest, Message, SamplingRequest
from pipelines.serve.requests.text_stream import TextPiece, TextStream, TextToken
from pipelines.serve.requests.token_bytes import TokenBytes
from pipelines.serve.serve_config import ServeConfig

MIN_TEMPERATURE = 1e-5

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class TextChunk:
    """A part of continuation `index`: text that will not change any more, with its tokens.

    num_generated: tokens that the engine generated for it, including those that a stop string removes.
    """

    index: int
    text: str
    tokens: tuple[TextToken, ...]
    finish_reason: str | None
    cached_tokens: int = 0
    num_generated: int = 0


@dataclass(frozen=True)
class GenerationStream:
    """One continuation to generate.

    lead: text that the model generates before the answer and that is not part of it; continues_text: whether the text
    continues the prompt's; echo: whether to return the prompt too.
    """

    request: GenerationRequest
    lead: str
    continues_text: bool
    echo: bool = False

    def prompt(self, step: Step) -> tuple[Token, ...]:
        """Return the prompt's tokens to return before the first step's."""
        if not self.echo:
            return ()
        return step.prompt or tuple(Token(token) for token in self.request.prompt_ids)


@dataclass(frozen=True)
class Continuation:
    """The continuations of one request: each prompt n times."""

    resolved: ResolvedPolicy
    runs: tuple[GenerationStream, ...]  # n of the first prompt, then n of the next
    prompt_tokens: int
    stops: tuple[str, ...]

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters, which all its runs share."""
        return self.runs[0].request.sampling


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as text and as tokens; continues_text: whether the answer continues text in the prompt."""

    text: str
    ids: TokenIds
    continues_text: bool = False


class CompletionHandler:
    """Answers /v1/chat/completions and /v1/completions. Methods raise UserError if a request is invalid."""

    def __init__(self, config: ServeConfig, resolver: PolicyResolver, backend: Backend, metrics: Metrics):
        self._config, self._resolver, self._backend, self._metrics = config, resolver, backend, metrics
        self._token_bytes = TokenBytes(self._tokenizer)

    @property
    def _tokenizer(self) -> Any:
        return self._resolver.catalog.tokenizer

    async def chat(self, body: ChatRequest) -> Continuation:
        """Return the continuations that answer a chat."""
        resolved = await self._resolver.resolve(body.model, body.preference)
        return await self.chat_resolved(body, resolved)

    async def chat_resolved(self, body: ChatRequest, resolved: ResolvedPolicy) -> Continuation:
        """Return the continuations that answer a chat by an already resolved policy."""
        self._refuse_mixed(resolved)
        self._refuse_many(body, 1)
        self._resolver.refuse_overlong("messages", *(message.text for message in body.messages))
        return await self._resolver.run_in_thread(self._chat, body, resolved)

    async def complete(self, body: CompletionRequest) -> Continuation:
        """Return the continuations of a plain completion; the policy's style decides where a preference is stated."""
        resolved = await self._resolver.resolve(body.model, body.preference)
        self._refuse_mixed(resolved)
        self._refuse_many(body, len(body.prompts))
        for prompt in body.prompts:
            if isinstance(prompt, str):
                self._resolver.refuse_overlong("prompt", prompt)
        return await self._resolver.run_in_thread(self._completion, body, resolved)

    def _chat(self, body: ChatRequest, resolved: ResolvedPolicy) -> Continuation:
        self._resolver.refuse_control_tokens("messages", *(message.text for message in body.messages))
        if not body.continue_final_message:
            return self._continuation(body, resolved, self._encode(self._chat_text(body.messages, resolved)))
        *before, unfinished = body.messages
        text = self._chat_text(before, resolved) + resolved.policy.ref.style.frame.answer_lead + unfinished.text
        return self._continuation(body, resolved, replace(self._encode(text), continues_text=True))

    def _completion(self, body: CompletionRequest, resolved: ResolvedPolicy) -> Continuation:
        return self._continuation(
            body, resolved, *(self._encode_prompt(prompt, body, resolved) for prompt in body.prompts)
        )

    def _encode_prompt(
        self, prompt: str | list[int], body: CompletionRequest, resolved: ResolvedPolicy
    ) -> EncodedPrompt:
        if not isinstance(prompt, str):
            return self._from_ids(prompt, body, resolved)
        self._resolver.refuse_control_tokens("prompt", prompt)
        text = state_in_message(prompt, resolved.lines, resolved.policy.ref.style)
        return replace(self._encode(text), continues_text=True)

    def _encode(self, text: str) -> EncodedPrompt:
        self._resolver.refuse_overlong("prompt", text)
        (ids,) = tokenize_prompts([text], self._tokenizer)
        return EncodedPrompt(text, tuple(int(token) for token in ids))

    def _from_ids(self, prompt: Sequence[int], body: CompletionRequest, resolved: ResolvedPolicy) -> EncodedPrompt:
        if resolved.lines:
            raise UserError("prompt: with a preference, which is stated as text, send the prompt as text")
        ids = tuple(prompt)
        if max(ids) >= len(self._tokenizer):
            raise UserError(f"prompt: {max(ids)} is not a token id: the vocabulary has {len(self._tokenizer)} tokens")
        return replace(self._with_text(ids) if body.choices else EncodedPrompt("", ids), continues_text=True)

    def _with_text(self, ids: TokenIds) -> EncodedPrompt:
        """Return a prompt of token ids with its text. Raises UserError if the text would have other tokens."""
        bos = self._tokenizer.bos_token_id  # removed, because a tokenizer that begins texts with it adds it again
        text = self._tokenizer.backend_tokenizer.decode(ids[ids[0] == bos :], skip_special_tokens=False)
        encoded = self._encode(text)
        if encoded.ids != ids:
            raise UserError(
                "structured_outputs: the prompt's tokens are not those of its text: send the prompt as text"
            )
        return encoded

    async def chunks(self, continuation: Continuation, *, stream: bool) -> AsyncIterator[TextChunk]:
        """Run all continuations at once and yield their chunks; stream: as they come."""
        self._metrics.tokens.labels("prompt").inc(continuation.prompt_tokens)
        queue: asyncio.Queue[TextChunk | BaseException | None] = asyncio.Queue()

        async def run(index: int) -> None:
            try:
                async with aclosing(self._run(continuation, index, stream)) as chunks:  # type: ignore[type-var]  # a generator
                    async for chunk in chunks:
                        queue.put_nowait(chunk)
                queue.put_nowait(None)
            except Exception as error:  # any error is raised where the queue is read
                queue.put_nowait(error)

        tasks = [asyncio.create_task(run(index)) for index in range(len(continuation.runs))]
        try:
            num_running = len(tasks)
            while num_running:
                chunk = await queue.get()
                if isinstance(chunk, BaseException):
                    raise chunk
                if chunk is None:
                    num_running -= 1
                else:
                    self._metrics.tokens.labels("completion").inc(chunk.num_generated)
                    self._metrics.tokens.labels("cached").inc(chunk.cached_tokens)
                    yield chunk
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, continuation: Continuation, index: int, stream: bool) -> AsyncIterator[TextChunk]:
        run = continuation.runs[index]
        text = TextStream(
            self._token_bytes,
            continuation.stops,
            lead=run.lead,
            continues_text=run.continues_text,
            min_tokens=run.request.sampling.min_tokens,
        )
        # With stop strings, stream the steps, so that generation ends as soon as one is found.
        request = replace(run.request, stream=stream or bool(continuation.stops))
        steps: Any = self._backend.generate(request, continuation.resolved.policy.source)
        async with aclosing(steps):
            is_first = True
            async for step in steps:
                chunk = _chunk(index, step, text, run.prompt(step) if is_first else (), has_end=run.echo)
                is_first = False
                yield chunk
                if chunk.finish_reason is not None:
                    return

    def _refuse_mixed(self, resolved: ResolvedPolicy) -> None:
        if len(resolved.parts) > 1:
            raise UserError(
                "preference: free text at a weight between two poles needs a server whose recipe sets `ends`: name one "
                "pole, or use /v1/choose, which mixes probabilities"
            )

    def _refuse_many(self, body: SamplingRequest, num_prompts: int) -> None:
        count, limit = (body.n or 1) * num_prompts, self._config.limits.completions
        if count > limit:
            raise UserError(
                f"n={body.n or 1} with {num_prompts} prompts: this server generates at most {limit} texts per request"
            )

    def _chat_text(self, messages: Sequence[Message], resolved: ResolvedPolicy) -> str:
        """Render a chat; the preference is stated in the last message."""
        style = resolved.policy.ref.style
        last = state_in_message(messages[-1].text, resolved.lines, style)
        if len(messages) > 1 and not style.frame.answer_lead:  # a chat template's frame
            turns = [{"role": m.role, "content": m.text} for m in messages[:-1]] + [{"role": "user", "content": last}]
            try:
                return render_chat(self._tokenizer, turns)
            except Exception as error:  # a template's own code can raise anything
                raise UserError(f"messages: the model's chat template rejects them ({error})") from None
        before = ""
        for message in messages[:-1]:
            frame = style.frame
            before += {
                "user": frame.opening + message.text + frame.closing,
                "assistant": frame.answer_lead + message.text + "\n",
            }.get(message.role, message.text + "\n")
        return before + style.frame.opening + last + style.frame.closing

    def _continuation(self, body: SamplingRequest, resolved: ResolvedPolicy, *prompts: EncodedPrompt) -> Continuation:
        if not all(prompt.ids for prompt in prompts):
            raise UserError("prompt: it has no tokens: send some text")
        runs = tuple(run for prompt in prompts for run in self._runs(body, prompt, resolved))
        return Continuation(resolved, runs, sum(len(prompt.ids) for prompt in prompts), tuple(body.stops))

    def _runs(
        self, body: SamplingRequest, prompt: EncodedPrompt, resolved: ResolvedPolicy
    ) -> Iterator[GenerationStream]:
        sampling = _sampling(body, self._max_tokens(body, len(prompt.ids)))
        ids, continues_text = prompt.ids, prompt.continues_text or body.grammar is not None
        lead = "" if continues_text else resolved.policy.ref.style.frame.answer_lead
        if body.choices:
            choices = self._in_context(prompt, lead, body.choices)
            ids, lead, continues_text = choices.prompt_ids, choices.lead, True
            sampling = replace(sampling, choices=choices.choices)
        for i in range(body.n or 1):
            seed = None if body.seed is None else (body.seed + i) % 2**63
            request = GenerationRequest(ids, replace(sampling, seed=seed), resolved.steering)
            yield GenerationStream(
                request, lead, continues_text, echo=isinstance(body, CompletionRequest) and bool(body.echo)
            )

    def _in_context(self, prompt: EncodedPrompt, lead: str, choices: Sequence[str]) -> ChoicesInContext:
        """Return the tokens that the choices have after the prompt."""
        texts, at = [prompt.text + lead + choice for choice in choices], len(prompt.text)
        rows = tokenize(texts, [at] * len(texts), [(0, 0)] * len(texts), self._tokenizer)
        split = in_context(prompt.ids, [row.ids[:-1].tolist() for row in rows])
        special = set(self._tokenizer.all_special_ids)
        for choice, ids in zip(choices, split.choices, strict=True):
            if special.intersection(ids):
                raise UserError(
                    f"structured_outputs: {choice[:80]!r} contains a special token, which answers never show: remove it"
                )
        repeated = b"".join(map(self._token_bytes.bytes_of, prompt.ids[len(split.prompt_ids) :]))
        return replace(split, lead=repeated.decode("utf-8", "replace") + lead)

    def _max_tokens(self, body: SamplingRequest, prompt_tokens: int) -> int:
        room = self._config.engine.max_length - prompt_tokens
        wanted = getattr(body, "max_completion_tokens", None) or body.max_tokens
        min_tokens = body.min_tokens or 0
        needed = 1 if wanted is None else wanted
        if needed > room:
            length = self._config.engine.max_length
            raise TooLongError(
                f"prompt and max_tokens: {prompt_tokens} + {needed} tokens, but this server takes at most {length}"
            )
        if wanted is not None and wanted > self._config.limits.max_tokens:
            raise UserError(
                f"max_tokens={wanted}: this server generates at most {self._config.limits.max_tokens}: lower it"
            )
        max_tokens = min(self._config.limits.default_max_tokens, room) if wanted is None else wanted
        if min_tokens > max_tokens:
            raise UserError(f"min_tokens={min_tokens} exceeds max_tokens={max_tokens}: lower it, or raise max_tokens")
        return max_tokens


def _chunk(index: int, step: Step, text: TextStream, prompt: Sequence[Token], *, has_end: bool) -> TextChunk:
    """Return the text and tokens that a step adds; nothing after a stop string.

    prompt: tokens to return first; has_end: whether to return the final EOS too, as a token without text.
    """
    pieces: list[TextPiece] = [text.repeat(prompt)] if prompt else []
    num_fed = 0
    while num_fed < len(step.tokens) and not text.is_stopped:
        pieces.append(text.feed(step.tokens[num_fed]))
        num_fed += 1
    if has_end and step.end is not None and not text.is_stopped:
        pieces.append(text.feed(step.end))
    reason = "stop" if text.is_stopped else step.finish_reason
    if reason is not None:
        pieces.append(text.rest())
    joined = "".join(piece for piece, _ in pieces)
    tokens = tuple(token for _, tokens in pieces for token in tokens)
    return TextChunk(index, joined, tokens, reason, step.cached_tokens, num_fed)


def _sampling(body: SamplingRequest, max_tokens: int) -> Sampling:
    logprobs = _num_logprobs(body)
    return Sampling(
        max_tokens=max_tokens,
        temperature=_temperature(body),
        top_p=body.top_p or 1.0,
        logprobs=logprobs,
        grammar=body.grammar,
        prompt_logprobs=logprobs if getattr(body, "echo", False) else None,
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
    )


def _temperature(body: SamplingRequest) -> float:
    """Return the temperature: 0 (greedy) if it is too small for floats, or if top_p leaves only one token."""
    if body.top_p == 0:
        return 0.0
    if body.temperature is None:
        return 1.0
    return 0.0 if body.temperature < MIN_TEMPERATURE else body.temperature


def _num_logprobs(body: SamplingRequest) -> int | None:
    if isinstance(body, ChatRequest):
        return (body.top_logprobs or 0) if body.logprobs else None
    # `false` requests no log-probabilities, unlike the number 0.
    return body.logprobs if isinstance(body, CompletionRequest) and body.logprobs is not False else None
