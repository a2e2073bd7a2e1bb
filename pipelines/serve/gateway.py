"""Requests become questions to the backend, and its log-probabilities and tokens become answers.

The words are those of training and evaluation (`pft_core.prompts`), the choosing that of evaluation
(`pft_core.evaluation.answers`): a policy is served as it was measured.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pft_core.conditions import Condition, read_condition
from pft_core.encoding import BranchedExample, branched_example, tokenize, tokenize_prompts
from pft_core.errors import UserError
from pft_core.evaluation.answers import Asking, Question, best, candidates, comparable, encode_options
from pft_core.prompts import LETTERS, condition_text, state_in_message
from pft_core.records import Form, Option, PairedExample, Reject
from pipelines.serve.bodies import (
    AnswerScore,
    ChatBody,
    ChooseBody,
    Chosen,
    CompareBody,
    Compared,
    CompletionBody,
    Message,
    OptionScore,
    Preference,
    SamplingBody,
    ScoreBody,
    Scored,
    Side,
)
from pipelines.serve.catalog import Catalog, Policy
from pipelines.serve.config import LimitsConfig, ServeConfig
from pipelines.serve.engine import Sampling, Steering, Token
from pipelines.serve.host import Backend
from pipelines.serve.text_stream import TextStream

Mixing = Literal["adapter", "probabilities", "steering"] | None


class TooLongError(UserError):
    """Prompt and answer have more tokens than the server takes."""


@dataclass(frozen=True)
class Asked:
    """Who is asked, and under which poles; several parts with weights where probabilities are to be mixed."""

    policy: Policy
    parts: tuple[tuple[Condition, float], ...]
    steering: Steering | None = None
    mixing: Mixing = None


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
    """A prompt on its way: what is asked of the engine, n times."""

    policy: Policy
    prompt_ids: tuple[int, ...]
    samplings: tuple[Sampling, ...]
    stops: tuple[str, ...]
    lead: str  # what the frame writes before an answer, and is no part of it
    steering: Steering | None
    mixing: Mixing


class Gateway:
    """Answers the bodies of all routes. Raises UserError for what a client got wrong."""

    def __init__(self, config: ServeConfig, catalog: Catalog, backend: Backend):
        self._config, self.catalog, self._backend = config, catalog, backend

    @property
    def limits(self) -> LimitsConfig:
        return self._config.limits

    async def ready(self) -> None:
        """Raise UnavailableError where no replica would answer."""
        await self._backend.check()

    async def choose(self, body: ChooseBody) -> Chosen:
        """Choose an option, and the set of all that fit, by the log-probabilities of the answers that name them."""
        asked = await self.asked(body.model, body.preference)
        return await self._chosen(asked, body.scenario, body.options, body.forms, body.preference)

    async def _chosen(
        self, asked: Asked, scenario: str, options: Sequence[str], forms: Sequence[Form], preference: Any
    ) -> Chosen:
        wanted = sorted(set(forms), reverse=True)  # `one` first
        questions = [
            question(asked.policy, part, scenario, options, form) for form in wanted for part, _ in asked.parts
        ]
        examples = self._encoded(asked.policy, questions)
        scorable = [example for example in examples if isinstance(example, BranchedExample)]
        self._refuse_too_many(scorable)
        logps = iter(await self._scored(asked, scorable))
        found = [None if isinstance(e, Reject) else (e, next(logps)) for e in examples]
        weights = [weight for _, weight in asked.parts]
        by_form = dict(zip(wanted, _grouped(list(zip(questions, found, strict=True)), len(weights)), strict=True))
        asking = self._asking(asked.policy)
        one = _mixed(by_form["one"], weights, asking) if "one" in by_form else None
        every = _mixed(by_form["all"], weights, asking) if "all" in by_form else None
        return Chosen(
            **_who(asked, preference),
            **_choice(one, by_form.get("one"), options),
            **_all(every, by_form.get("all"), examples),
            usage=_usage(scorable),
        )

    async def score(self, body: ScoreBody) -> Scored:
        """Return the log-probability of every answer under every preference."""
        asked = [await self.asked(body.model, preference) for preference in body.preferences]
        if any(len(each.parts) > 1 for each in asked):
            raise UserError("preferences: a weight between two poles has no log-probability of its own: give poles")
        policies = [each.policy for each in asked]
        examples = [self._answers(each, body.scenario, body.answers) for each in asked]
        self._refuse_too_many(examples)
        rows = await asyncio.gather(*(self._scored(each, [e]) for each, e in zip(asked, examples, strict=True)))
        scores = [
            [AnswerScore(logprob=float(p), num_tokens=b.num_labels) for p, b in zip(row[0], e.branches, strict=True)]
            for row, e in zip(rows, examples, strict=True)
        ]
        return Scored(model=policies[0].id, adapter=_adapter(policies[0]), scores=scores, usage=_usage(examples))

    async def compare(self, body: CompareBody) -> Compared:
        """Ask both poles of an axis, and what lies between them at a weight, in one call."""
        policy = await asyncio.to_thread(self.catalog.resolve, body.model)
        space = policy.ref.space
        axis = space.axes[0] if body.axis is None else space.axis(body.axis)
        sides = [self._side(body, {"axis": axis.name, "pole": pole.name}, pole.name, 1.0 - i) for i, pole in
                 enumerate(axis.poles)]  # fmt: skip
        if body.weight is not None:
            weights = {axis.first.name: body.weight, axis.second.name: 1 - body.weight}
            sides.append(self._side(body, {"axis": axis.name, **weights}, "between", body.weight))
        answered = await asyncio.gather(*sides)
        return Compared(axis=axis.name, first=answered[0], second=answered[1], between=(*answered, None)[2])

    async def _side(self, body: CompareBody, preference: Any, pole: str, weight: float) -> Side:
        chosen, text = None, None
        asked = await self.asked(body.model, preference)
        if body.options is not None:
            chosen = await self._chosen(asked, body.scenario, body.options, ["one", "all"], preference)
        elif len(asked.parts) == 1:
            message = Message(role="user", content=body.scenario)
            request = ChatBody(model=body.model, messages=[message], max_tokens=body.max_tokens, temperature=0)
            text = await self._text(self._continuation(request, asked, self._chat_ids(request.messages, asked)))
        return Side(
            pole=pole,
            weight=weight,
            chosen=chosen,
            text=text,
            model=asked.policy.id,
            adapter=_adapter(asked.policy),
            mixing=asked.mixing,
        )

    async def _text(self, continuation: Continuation) -> str:
        return "".join([piece.text async for piece in self.pieces(continuation, stream=False)])

    async def chat(self, body: ChatBody) -> Continuation:
        """Return what a chat asks of the engine."""
        asked = await self.asked(body.model, body.preference)
        return self._continuation(body, asked, self._chat_ids(body.messages, asked))

    async def complete(self, body: CompletionBody) -> Continuation:
        """Return what a plain completion asks; a preference is stated where the policy's style puts it."""
        asked = await self.asked(body.model, body.preference)
        if isinstance(body.prompt, str):
            ids = self._ids(state_in_message(body.prompt, _lines(asked), asked.policy.ref.style))
        elif _lines(asked):
            raise UserError("prompt: a preference is stated in text, so give the prompt as text")
        else:
            ids = tuple(body.prompt)
            if max(ids) >= len(self.catalog.tokenizer):
                raise UserError(f"prompt: {max(ids)} is no token id: the vocabulary has {len(self.catalog.tokenizer)}")
        return self._continuation(body, asked, ids)

    async def pieces(self, continuation: Continuation, *, stream: bool) -> AsyncIterator[Piece]:
        """Run all n continuations at once and yield their pieces; stream: as they come."""
        queue: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()

        async def run(index: int) -> None:
            try:
                async with aclosing(self._run(continuation, index, stream)) as pieces:  # type: ignore[type-var]
                    async for piece in pieces:
                        queue.put_nowait(piece)
                queue.put_nowait(None)
            except Exception as error:  # it belongs to the reader, whatever it is
                queue.put_nowait(error)

        tasks = [asyncio.create_task(run(index)) for index in range(len(continuation.samplings))]
        try:
            left = len(tasks)
            while left:
                piece = await queue.get()
                if isinstance(piece, BaseException):
                    raise piece
                if piece is None:
                    left -= 1
                else:
                    yield piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, continuation: Continuation, index: int, stream: bool) -> AsyncIterator[Piece]:
        decoder = TextStream(self.catalog.tokenizer, continuation.stops, lead=continuation.lead)
        steps: Any = self._backend.generate(
            continuation.prompt_ids,
            continuation.samplings[index],
            continuation.policy.source,
            continuation.steering,
            stream=stream or bool(continuation.stops),  # a stop string ends the work as soon as it is written
        )
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

    async def asked(self, model: str | None, preference: Preference | None) -> Asked:
        """Find the policy, and how the preference reaches it: by words, by an adapter, by a direction, or by mixing."""
        policy = await asyncio.to_thread(self.catalog.resolve, model)
        condition = read_condition(preference, policy.ref.space)
        if policy.steered:
            return self._steered(policy, condition)
        if condition.slider is None:
            return Asked(policy, ((condition, 1.0),))
        weight = condition.slider[1]
        if policy.id == (await asyncio.to_thread(self.catalog.resolve, None)).id:
            between = await asyncio.to_thread(self.catalog.between, weight)
            if between is not None:
                # The adapter itself holds the preference: no pole is stated.
                return Asked(between, ((Condition(condition.stated), 1.0),), mixing="adapter")
        parts = ((condition.at_pole(0), weight), (condition.at_pole(1), 1 - weight))
        return Asked(policy, parts, mixing="probabilities")

    def _steered(self, policy: Policy, condition: Condition) -> Asked:
        steering = self._config.steering
        assert steering is not None
        if condition.axis is None:
            return Asked(policy, ((Condition(), 1.0),))
        if len(condition.stated) + bool(condition.slider) > 1:
            raise UserError("preference: one direction is added at a time: give one axis")
        weight = condition.slider[1] if condition.slider else 1.0 - condition.stated[0][1]
        direction = Steering(condition.axis, steering.multiplier * (2 * weight - 1))
        return Asked(policy, ((Condition(), 1.0),), direction, "steering" if condition.slider else None)

    def _asking(self, policy: Policy) -> Asking:
        engine = self._config.engine
        return Asking(policy.ref.style, policy.ref.space, engine.max_length, engine.tokens_per_batch, max_new_tokens=1)

    def _encoded(self, policy: Policy, questions: Sequence[Question]) -> list[BranchedExample | Reject]:
        examples = encode_options(questions, tokenizer=self.catalog.tokenizer, asking=self._asking(policy))
        for example in examples:
            if isinstance(example, Reject) and example.reason != "too_many_subsets":
                raise TooLongError(f"scenario and options: {example.detail}")
        return examples

    def _answers(self, asked: Asked, scenario: str, answers: Sequence[str]) -> BranchedExample:
        """Encode free answers as branches of one prompt."""
        style = asked.policy.ref.style
        message = state_in_message(scenario, _lines(asked), style)
        prompt = style.frame.opening + message + style.frame.closing
        texts = [prompt + style.frame.answer_lead + answer for answer in answers]
        rows = tokenize(texts, [len(prompt)] * len(texts), [(0, 0)] * len(texts), self.catalog.tokenizer)
        longest = max(len(row.ids) for row in rows)
        if longest > self._config.engine.max_length:
            raise TooLongError(
                f"scenario and answers: {longest} tokens, this server takes {self._config.engine.max_length}"
            )
        prompts, ends = [row.ids[: row.answer_start] for row in rows], [row.ids[row.answer_start :] for row in rows]
        return branched_example("score", prompts, ends, range(len(rows)))

    async def _scored(self, asked: Asked, examples: Sequence[BranchedExample]) -> list[NDArray[np.float32]]:
        if not examples:
            return []
        return await self._backend.score(examples, asked.policy.source, asked.steering)

    def _refuse_too_many(self, examples: Sequence[BranchedExample]) -> None:
        branches = sum(len(example.branches) for example in examples)
        if branches > self.limits.branches:
            raise UserError(f"{branches} answers to score, this server takes {self.limits.branches} at once: ask fewer")

    def _chat_ids(self, messages: Sequence[Message], asked: Asked) -> tuple[int, ...]:
        """Tokenise a chat: the last message holds the preference, earlier ones stand before it."""
        style = asked.policy.ref.style
        last = state_in_message(messages[-1].text, _lines(asked), style)
        if len(messages) > 1 and not style.frame.answer_lead:  # a chat template's frame
            turns = [{"role": m.role, "content": m.text} for m in messages[:-1]] + [{"role": "user", "content": last}]
            try:
                text = self.catalog.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
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

    def _ids(self, text: str) -> tuple[int, ...]:
        (ids,) = tokenize_prompts([text], self.catalog.tokenizer)
        return tuple(int(token) for token in ids)

    def _continuation(self, body: SamplingBody, asked: Asked, prompt_ids: tuple[int, ...]) -> Continuation:
        if len(asked.parts) > 1:
            raise UserError(
                "preference: text between two poles needs a recipe with `ends`; /v1/choose mixes probabilities instead"
            )
        count = body.n or 1
        if count > self.limits.completions:
            raise UserError(f"n={count}: this server takes {self.limits.completions}")
        sampling = Sampling(
            max_tokens=self._max_tokens(body, len(prompt_ids)),
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=body.top_p or 1.0,
            logprobs=_num_logprobs(body),
            choices=self._choices(body, asked),
        )
        seeds = [None if body.seed is None else (body.seed + i) % 2**63 for i in range(count)]
        samplings = tuple(replace(sampling, seed=seed) for seed in seeds)
        return Continuation(
            asked.policy, prompt_ids, samplings, tuple(body.stops), _lead(body, asked), asked.steering, asked.mixing
        )

    def _max_tokens(self, body: SamplingBody, prompt_tokens: int) -> int:
        room = self._config.engine.max_length - prompt_tokens
        wanted = getattr(body, "max_completion_tokens", None) or body.max_tokens
        if room < 1 or (wanted or 0) > room:
            length = self._config.engine.max_length
            raise TooLongError(
                f"prompt and max_tokens: {prompt_tokens} + {wanted or 1} tokens, this server takes {length}"
            )
        if wanted is not None and wanted > self.limits.max_tokens:
            raise UserError(f"max_tokens={wanted}: this server writes {self.limits.max_tokens}")
        return wanted or min(self.limits.default_max_tokens, room)

    def _choices(self, body: SamplingBody, asked: Asked) -> tuple[tuple[int, ...], ...]:
        if body.structured_outputs is None:
            return ()
        texts = [_lead(body, asked) + choice for choice in body.structured_outputs.choice]
        ids = self.catalog.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return tuple(tuple(row) for row in ids)


def question(policy: Policy, condition: Condition, scenario: str, options: Sequence[str], form: Form) -> Question:
    """Make a record of what a client shows; the sides of its options are not known and not needed."""
    stated = condition.stated
    axis, side = stated[0] if stated else (policy.ref.space.axes[0].name, None)
    record = PairedExample("request", axis, scenario, tuple(Option(text, 0) for text in options))
    return Question(record, form, side, others=stated[1:])


def _lines(asked: Asked) -> list[str]:
    """Return the condition's lines, one for each pole that is stated."""
    ((condition, _),) = asked.parts if len(asked.parts) == 1 else (asked.parts[0],)
    style, space = asked.policy.ref.style, asked.policy.ref.space
    return [condition_text(space, axis, side, condition=style.condition) for axis, side in condition.stated]


def _lead(body: SamplingBody, asked: Asked) -> str:
    return asked.policy.ref.style.frame.answer_lead if isinstance(body, ChatBody) else ""


def _num_logprobs(body: SamplingBody) -> int | None:
    if isinstance(body, ChatBody):
        return (body.top_logprobs or 0) if body.logprobs else None
    return body.logprobs if isinstance(body, CompletionBody) else None


Answered = tuple[Question, tuple[BranchedExample, NDArray[np.float32]] | None]


def _grouped(rows: list[Answered], size: int) -> list[list[Answered]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _mixed(rows: Sequence[Answered], weights: Sequence[float], asking: Asking) -> NDArray[np.float64] | None:
    """Return the candidates' probabilities, mixed over the poles; None where they were not scored."""
    mixed: Any = 0.0
    for (asked, found), weight in zip(rows, weights, strict=True):
        if found is None:
            return None
        scores = comparable(asked, *found, asking).astype(np.float64)
        odds = np.exp(scores - scores.max())
        mixed = mixed + weight * odds / odds.sum()
    return np.asarray(mixed)


def _choice(
    probabilities: NDArray[np.float64] | None, rows: Sequence[Answered] | None, options: Sequence[str]
) -> dict[str, Any]:
    if probabilities is None or rows is None:
        return {"choice": None, "letter": None, "option": None, "options": None}
    (index,) = best(rows[0][0], probabilities)
    # Mixed poles have no log-probability of their own.
    found = rows[0][1] if len(rows) == 1 else None
    listed = [
        OptionScore(
            index=i,
            letter=LETTERS[i],
            text=text,
            logprob=None if found is None else float(found[1][i]),
            num_tokens=None if found is None else found[0].branches[i].num_labels,
            probability=float(probabilities[i]),
        )
        for i, text in enumerate(options)
    ]
    return {"choice": index, "letter": LETTERS[index], "option": options[index], "options": listed}


def _all(
    probabilities: NDArray[np.float64] | None,
    rows: Sequence[Answered] | None,
    examples: Sequence[BranchedExample | Reject],
) -> dict[str, Any]:
    if rows is None:
        return {"all": None, "all_probability": None}
    if probabilities is None:
        reject = next(example for example in examples if isinstance(example, Reject))
        return {"all": None, "all_probability": None, "all_reason": reject.detail}
    asked = rows[0][0]
    chosen = best(asked, probabilities)
    place = [frozenset(candidate) for candidate in candidates(asked)].index(chosen)
    return {"all": sorted(chosen), "all_probability": float(probabilities[place])}


def _who(asked: Asked, preference: Any) -> dict[str, Any]:
    return {
        "model": asked.policy.id,
        "adapter": _adapter(asked.policy),
        "preference": _preference(asked, preference),
        "mixing": asked.mixing,
    }


def _preference(asked: Asked, raw: Any) -> dict[str, Any] | None:
    """Say back how a preference was understood: axis -> weight of its first pole."""
    condition = read_condition(raw, asked.policy.ref.space)
    told = {axis: 1.0 - side for axis, side in condition.stated}
    return (told | dict([condition.slider]) if condition.slider else told) or None


def _adapter(policy: Policy) -> str | None:
    return None if policy.source is None else policy.source.id


def _usage(examples: Sequence[BranchedExample]) -> dict[str, Any]:
    tokens = sum(example.num_tokens for example in examples)
    return {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
