"""Free text: chats and completions become prompts, and what the engine writes becomes text."""

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

LEAST_TEMPERATURE = 1e-5

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class TextChunk:
    """A part of one continuation (`index` of n): text that has become certain, with its tokens.

    num_written: tokens that the engine wrote for it, those included that a stop string leaves out.
    """

    index: int
    text: str
    tokens: tuple[TextToken, ...]
    finish_reason: str | None
    cached_tokens: int = 0
    num_written: int = 0


@dataclass(frozen=True)
class GenerationStream:
    """One continuation on its way.

    lead: what is written before the answer, and is no part of it; is_begun: whether the text goes on with the prompt's;
    echo: whether the prompt is told too.
    """

    request: GenerationRequest
    lead: str
    is_begun: bool
    echo: bool = False

    def prompt(self, step: Step) -> tuple[Token, ...]:
        """Return the tokens of the prompt that the first step tells."""
        if not self.echo:
            return ()
        return step.prompt or tuple(Token(token) for token in self.request.prompt_ids)


@dataclass(frozen=True)
class Continuation:
    """Prompts on their way: what is asked of the engine, n times each."""

    asked: ResolvedPolicy
    runs: tuple[GenerationStream, ...]  # of the first prompt all n, then of the next
    prompt_tokens: int
    stops: tuple[str, ...]

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters, which all its runs share."""
        return self.runs[0].request.sampling


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as text and as tokens; is_begun: whether an answer was begun in it, which is continued."""

    text: str
    ids: TokenIds
    is_begun: bool = False


class CompletionHandler:
    """Answers /v1/chat/completions and /v1/completions. Raises UserError for what a client got wrong."""

    def __init__(self, config: ServeConfig, asker: PolicyResolver, backend: Backend, metrics: Metrics):
        self._config, self._asker, self._backend, self._metrics = config, asker, backend, metrics
        self._spelling = TokenBytes(self._tokenizer)

    @property
    def _tokenizer(self) -> Any:
        return self._asker.catalog.tokenizer

    async def chat(self, body: ChatRequest) -> Continuation:
        """Return what a chat asks of the engine."""
        asked = await self._asker.asked(body.model, body.preference)
        return await self.answer(body, asked)

    async def answer(self, body: ChatRequest, asked: ResolvedPolicy) -> Continuation:
        """Return what a chat asks, where it is known who is asked."""
        self._refuse_mixed(asked)
        self._refuse_many(body, 1)
        self._asker.refuse_overlong("messages", *(message.text for message in body.messages))
        return await self._asker.apart(self._chat, body, asked)

    async def complete(self, body: CompletionRequest) -> Continuation:
        """Return what a plain completion asks; a preference is stated where the policy's style puts it."""
        asked = await self._asker.asked(body.model, body.preference)
        self._refuse_mixed(asked)
        self._refuse_many(body, len(body.prompts))
        for prompt in body.prompts:
            if isinstance(prompt, str):
                self._asker.refuse_overlong("prompt", prompt)
        return await self._asker.apart(self._completion, body, asked)

    def _chat(self, body: ChatRequest, asked: ResolvedPolicy) -> Continuation:
        self._asker.refuse_control_tokens("messages", *(message.text for message in body.messages))
        if not body.continue_final_message:
            return self._continuation(body, asked, self._prompted(self._chat_text(body.messages, asked)))
        *before, begun = body.messages
        text = self._chat_text(before, asked) + asked.policy.ref.style.frame.answer_lead + begun.text
        return self._continuation(body, asked, replace(self._prompted(text), is_begun=True))

    def _completion(self, body: CompletionRequest, asked: ResolvedPolicy) -> Continuation:
        return self._continuation(body, asked, *(self._one(prompt, body, asked) for prompt in body.prompts))

    def _one(self, prompt: str | list[int], body: CompletionRequest, asked: ResolvedPolicy) -> EncodedPrompt:
        if not isinstance(prompt, str):
            return self._from_ids(prompt, body, asked)
        self._asker.refuse_control_tokens("prompt", prompt)
        text = state_in_message(prompt, asked.lines, asked.policy.ref.style)
        return replace(self._prompted(text), is_begun=True)

    def _prompted(self, text: str) -> EncodedPrompt:
        self._asker.refuse_overlong("prompt", text)
        (ids,) = tokenize_prompts([text], self._tokenizer)
        return EncodedPrompt(text, tuple(int(token) for token in ids))

    def _from_ids(self, given: Sequence[int], body: CompletionRequest, asked: ResolvedPolicy) -> EncodedPrompt:
        if asked.lines:
            raise UserError("prompt: a preference is stated in text, so give the prompt as text")
        ids = tuple(given)
        if max(ids) >= len(self._tokenizer):
            raise UserError(f"prompt: {max(ids)} is no token id: the vocabulary has {len(self._tokenizer)}")
        return replace(self._with_text(ids) if body.choices else EncodedPrompt("", ids), is_begun=True)

    def _with_text(self, ids: TokenIds) -> EncodedPrompt:
        """Return a prompt that was given in tokens with its text. Raises UserError where that has other tokens."""
        bos = self._tokenizer.bos_token_id  # comes back by itself where the tokenizer puts it first
        text = self._tokenizer.backend_tokenizer.decode(ids[ids[0] == bos :], skip_special_tokens=False)
        found = self._prompted(text)
        if found.ids != ids:
            raise UserError("structured_outputs: the prompt's tokens are not those of its text: give it as text")
        return found

    async def pieces(self, continuation: Continuation, *, stream: bool) -> AsyncIterator[TextChunk]:
        """Run all continuations at once and yield their pieces; stream: as they come."""
        self._metrics.tokens.labels("prompt").inc(continuation.prompt_tokens)
        queue: asyncio.Queue[TextChunk | BaseException | None] = asyncio.Queue()

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
                    self._metrics.tokens.labels("completion").inc(piece.num_written)
                    self._metrics.tokens.labels("cached").inc(piece.cached_tokens)
                    yield piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, continuation: Continuation, index: int, stream: bool) -> AsyncIterator[TextChunk]:
        run = continuation.runs[index]
        written = TextStream(
            self._spelling,
            continuation.stops,
            lead=run.lead,
            is_begun=run.is_begun,
            min_tokens=run.request.sampling.min_tokens,
        )
        # A stop string ends the work as soon as it is written.
        request = replace(run.request, stream=stream or bool(continuation.stops))
        steps: Any = self._backend.generate(request, continuation.asked.policy.source)
        async with aclosing(steps):
            is_first = True
            async for step in steps:
                piece = _piece(index, step, written, run.prompt(step) if is_first else (), tells_end=run.echo)
                is_first = False
                yield piece
                if piece.finish_reason is not None:
                    return

    def _refuse_mixed(self, asked: ResolvedPolicy) -> None:
        if len(asked.parts) > 1:
            raise UserError(
                "preference: text between two poles needs a recipe with `ends`; /v1/choose mixes probabilities instead"
            )

    def _refuse_many(self, body: SamplingRequest, num_prompts: int) -> None:
        count, most = (body.n or 1) * num_prompts, self._config.limits.completions
        if count > most:
            raise UserError(f"n={body.n or 1} of {num_prompts} prompts: this server writes {most} at once")

    def _chat_text(self, messages: Sequence[Message], asked: ResolvedPolicy) -> str:
        """Render a chat: the last message holds the preference, earlier ones stand before it."""
        style = asked.policy.ref.style
        last = state_in_message(messages[-1].text, asked.lines, style)
        if len(messages) > 1 and not style.frame.answer_lead:  # a chat template's frame
            turns = [{"role": m.role, "content": m.text} for m in messages[:-1]] + [{"role": "user", "content": last}]
            try:
                return render_chat(self._tokenizer, turns)
            except Exception as error:  # a template is code of its own, and refuses as it likes
                raise UserError(f"messages: the model's chat template refuses them ({error})") from None
        before = ""
        for message in messages[:-1]:
            frame = style.frame
            before += {
                "user": frame.opening + message.text + frame.closing,
                "assistant": frame.answer_lead + message.text + "\n",
            }.get(message.role, message.text + "\n")
        return before + style.frame.opening + last + style.frame.closing

    def _continuation(self, body: SamplingRequest, asked: ResolvedPolicy, *prompts: EncodedPrompt) -> Continuation:
        if not all(prompt.ids for prompt in prompts):
            raise UserError("prompt: holds no token: give some text")
        runs = tuple(run for prompt in prompts for run in self._runs(body, prompt, asked))
        return Continuation(asked, runs, sum(len(prompt.ids) for prompt in prompts), tuple(body.stops))

    def _runs(self, body: SamplingRequest, prompt: EncodedPrompt, asked: ResolvedPolicy) -> Iterator[GenerationStream]:
        sampling = _sampling(body, self._max_tokens(body, len(prompt.ids)))
        ids, is_begun = prompt.ids, prompt.is_begun or body.grammar is not None
        lead = "" if is_begun else asked.policy.ref.style.frame.answer_lead
        if body.choices:
            found = self._in_context(prompt, lead, body.choices)
            ids, lead, is_begun = found.prompt_ids, found.lead, True
            sampling = replace(sampling, choices=found.choices)
        for i in range(body.n or 1):
            seed = None if body.seed is None else (body.seed + i) % 2**63
            request = GenerationRequest(ids, replace(sampling, seed=seed), asked.steering)
            yield GenerationStream(
                request, lead, is_begun, echo=isinstance(body, CompletionRequest) and bool(body.echo)
            )

    def _in_context(self, prompt: EncodedPrompt, lead: str, choices: Sequence[str]) -> ChoicesInContext:
        """Return the choices in the tokens that they have after the prompt."""
        texts, at = [prompt.text + lead + choice for choice in choices], len(prompt.text)
        rows = tokenize(texts, [at] * len(texts), [(0, 0)] * len(texts), self._tokenizer)
        found = in_context(prompt.ids, [row.ids[:-1].tolist() for row in rows])
        special = set(self._tokenizer.all_special_ids)
        for choice, ids in zip(choices, found.choices, strict=True):
            if special.intersection(ids):
                raise UserError(f"structured_outputs: {choice[:80]!r} holds a special token, which is never shown")
        again = b"".join(map(self._spelling.bytes_of, prompt.ids[len(found.prompt_ids) :])).decode("utf-8", "replace")
        return replace(found, lead=again + lead)

    def _max_tokens(self, body: SamplingRequest, prompt_tokens: int) -> int:
        room = self._config.engine.max_length - prompt_tokens
        wanted = getattr(body, "max_completion_tokens", None) or body.max_tokens
        least = body.min_tokens or 0
        needed = 1 if wanted is None else wanted
        if needed > room:
            length = self._config.engine.max_length
            raise TooLongError(f"prompt and max_tokens: {prompt_tokens} + {needed} tokens, this server takes {length}")
        if wanted is not None and wanted > self._config.limits.max_tokens:
            raise UserError(f"max_tokens={wanted}: this server writes {self._config.limits.max_tokens}")
        most = min(self._config.limits.default_max_tokens, room) if wanted is None else wanted
        if least > most:
            raise UserError(f"min_tokens={least}: at most {most} are written: lower it, or raise max_tokens")
        return most


def _piece(index: int, step: Step, written: TextStream, prompt: Sequence[Token], *, tells_end: bool) -> TextChunk:
    """Return what a step adds to the text; after a stop string, nothing.

    prompt: tokens that are told before; tells_end: tell the EOS too, as a token without text.
    """
    told: list[TextPiece] = [written.repeat(prompt)] if prompt else []
    fed = 0
    while fed < len(step.tokens) and not written.stopped:
        told.append(written.feed(step.tokens[fed]))
        fed += 1
    if tells_end and step.end is not None and not written.stopped:
        told.append(written.feed(step.end))
    reason = "stop" if written.stopped else step.finish_reason
    if reason is not None:
        told.append(written.rest())
    text = "".join(text for text, _ in told)
    tokens = tuple(token for _, tokens in told for token in tokens)
    return TextChunk(index, text, tokens, reason, step.cached_tokens, fed)


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
    """Return the temperature; greedy where no float could hold the odds, and where top_p leaves one token."""
    if body.top_p == 0:
        return 0.0
    if body.temperature is None:
        return 1.0
    return 0.0 if body.temperature < LEAST_TEMPERATURE else body.temperature


def _num_logprobs(body: SamplingRequest) -> int | None:
    if isinstance(body, ChatRequest):
        return (body.top_logprobs or 0) if body.logprobs else None
    # `false` is no number of tokens: none are asked for.
    return body.logprobs if isinstance(body, CompletionRequest) and body.logprobs is not False else None
