"""The handler of choices and scores: log-probabilities of answers, compared in the same way as in evaluation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pft_core.data import LETTERS, Form, Option, PairedExample, Reject
from pft_core.encoding import BranchedExample, branched_example, tokenize
from pft_core.errors import UserError
from pft_core.evaluation import (
    MAX_OPTIONS_FOR_SUBSETS,
    AnswerSettings,
    Question,
    best,
    candidates,
    comparable,
    encode_options,
    probabilities_of,
    unscorable,
)
from pft_core.prompts import Condition, render_prompt, state_in_message
from pipelines.serve.engines import Backend, RequestFault
from pipelines.serve.metrics import Metrics
from pipelines.serve.policies import Policy
from pipelines.serve.requests.policy_resolver import ControlTokenError, PolicyResolver, ResolvedPolicy, TooLongError
from pipelines.serve.requests.schemas import (
    AnswerScore,
    ChooseRequest,
    ChooseResponse,
    OptionScore,
    PreferenceScores,
    ScoreRequest,
    ScoreResponse,
    Usage,
)
from pipelines.serve.serve_config import ServeConfig
from pipelines.serve.task_groups import gather_or_cancel

Scores = tuple[BranchedExample, NDArray[np.float32]]
ScoredQuestion = tuple[Question, Scores | None]  # None: it could not be scored


class ChoiceHandler:
    """Answers /v1/choose and /v1/score. Methods raise UserError if a request is invalid."""

    def __init__(self, config: ServeConfig, resolver: PolicyResolver, backend: Backend, metrics: Metrics):
        self._config, self._resolver, self._backend, self._metrics = config, resolver, backend, metrics

    async def choose(self, body: ChooseRequest) -> ChooseResponse:
        """Choose the best option, and the set of all that fit, by the log-probabilities of the answers naming them."""
        resolved = await self._resolver.resolve(body.model, body.preference)
        return await self.choose_resolved(resolved, body.scenario, body.options, body.forms)

    async def choose_resolved(
        self, resolved: ResolvedPolicy, scenario: str, options: Sequence[str], forms: Sequence[Form]
    ) -> ChooseResponse:
        """Choose by an already resolved policy. forms: `one`, `all` or both."""
        ordered_forms = sorted(set(forms), reverse=True)  # `one` first
        too_many = f"{len(options)} options: sets are scored for at most {MAX_OPTIONS_FOR_SUBSETS} options"
        parts = [part for part, _ in resolved.parts]
        questions = [
            question(resolved.policy, part, scenario, options, form) for form in ordered_forms for part in parts
        ]
        self._refuse_too_many(sum(len(candidates(each)) for each in questions if unscorable(each) is None))
        self._resolver.refuse_overlong("scenario and options", scenario, *options)
        examples = await self._resolver.run_in_thread(self._encode_questions, resolved.policy, questions)
        scorable = [example for example in examples if isinstance(example, BranchedExample)]
        logps = iter(await self._score(resolved, scorable))
        rows: list[ScoredQuestion] = [
            (q, None if isinstance(e, Reject) else (e, next(logps))) for q, e in zip(questions, examples, strict=True)
        ]
        by_form = {form: rows[len(parts) * i : len(parts) * (i + 1)] for i, form in enumerate(ordered_forms)}
        mixed = {form: self._mix_parts(resolved, rows) for form, rows in by_form.items()}
        reasons = [too_many for example in examples if isinstance(example, Reject)]
        return ChooseResponse(
            **resolved.response_fields,
            **one_of(options, mixed.get("one"), by_form.get("one", [])),
            **all_of(mixed.get("all"), by_form.get("all", []), reasons),
            usage=usage(scorable),
        )

    async def score(self, body: ScoreRequest) -> ScoreResponse:
        """Return the log-probability of every answer under every preference."""
        resolved = [await self._resolver.resolve(body.model, preference) for preference in body.preferences]
        if any(len(each.parts) > 1 for each in resolved):
            raise UserError(
                "preferences: there is no log-probability at a weight between two poles without an adapter there: "
                "give poles"
            )
        self._refuse_too_many(len(body.answers) * len(resolved))
        for answer in body.answers:
            self._resolver.refuse_overlong("scenario and answers", body.scenario, answer)
        examples = [
            await self._resolver.run_in_thread(self._encode_answers, each, body.scenario, body.answers)
            for each in resolved
        ]
        rows = await gather_or_cancel(
            *(self._score(each, [example]) for each, example in zip(resolved, examples, strict=True))
        )
        results = [
            PreferenceScores(**each.response_fields, answers=[
                AnswerScore(logprob=float(logp), num_tokens=branch.num_labels)
                for logp, branch in zip(row[0], example.branches, strict=True)
            ])
            for each, example, row in zip(resolved, examples, rows, strict=True)
        ]  # fmt: skip
        return ScoreResponse(results=results, usage=usage(examples))

    def _answer_settings(self, policy: Policy) -> AnswerSettings:
        engine = self._config.engine
        return AnswerSettings(
            policy.ref.style, policy.ref.space, engine.max_length, engine.tokens_per_batch, max_new_tokens=1
        )

    def _encode_questions(self, policy: Policy, questions: Sequence[Question]) -> list[BranchedExample | Reject]:
        tokenizer, style, space = self._resolver.catalog.tokenizer, policy.ref.style, policy.ref.space
        for q in questions:
            prompt = render_prompt(q.record, side=q.side, form=q.form, style=style, space=space, others=q.others)
            self._resolver.refuse_long_prompt("scenario and options", prompt.text)
        examples = encode_options(questions, tokenizer=tokenizer, settings=self._answer_settings(policy))
        for example in examples:
            if isinstance(example, Reject) and example.reason != "too_many_subsets":
                kind = TooLongError if example.reason == "overlong" else ControlTokenError
                raise kind(f"scenario and options: {example.detail}")
        return examples

    def _encode_answers(self, resolved: ResolvedPolicy, scenario: str, answers: Sequence[str]) -> BranchedExample:
        """Encode free-text answers as branches of one prompt."""
        self._resolver.refuse_control_tokens("scenario and answers", scenario, *answers)
        style = resolved.policy.ref.style
        prompt = style.frame.opening + state_in_message(scenario, resolved.lines, style) + style.frame.closing
        texts = [prompt + style.frame.answer_lead + answer for answer in answers]
        self._resolver.refuse_long_prompt("scenario and answers", max(texts, key=len))
        tokenizer = self._resolver.catalog.tokenizer
        rows = tokenize(texts, [len(prompt)] * len(texts), [(0, 0)] * len(texts), tokenizer)
        longest, limit = max(len(row.ids) for row in rows), self._config.engine.max_length
        if longest > limit:
            raise TooLongError(f"scenario and answers: {longest} tokens, but this server takes at most {limit}")
        prompts, ends = [row.ids[: row.answer_start] for row in rows], [row.ids[row.answer_start :] for row in rows]
        return branched_example("score", prompts, ends, range(len(rows)))

    async def _score(self, resolved: ResolvedPolicy, examples: Sequence[BranchedExample]) -> list[NDArray[np.float32]]:
        if not examples:
            return []
        self._metrics.tokens.labels("prompt").inc(sum(example.num_tokens for example in examples))
        scores = await self._backend.score(examples, resolved.policy.source, resolved.steering)
        if not all(np.isfinite(logps).all() for logps in scores):
            raise RequestFault(f"{resolved.policy.id}: its log-probabilities are not finite: its weights are damaged")
        return scores

    def _refuse_too_many(self, branches: int) -> None:
        limit = self._config.limits.branches
        if branches > limit:
            raise UserError(f"{branches} answers to score: this server scores at most {limit} per request: send fewer")

    def _mix_parts(self, resolved: ResolvedPolicy, rows: Sequence[ScoredQuestion]) -> NDArray[np.float64] | None:
        """Return the candidates' probabilities, mixed over the parts; None if they were not scored."""
        mixed: Any = 0.0
        for (each, scores), (_, weight) in zip(rows, resolved.parts, strict=True):
            if scores is None:
                return None
            mixed = mixed + weight * probabilities_of(comparable(each, *scores, self._answer_settings(resolved.policy)))
        return np.asarray(mixed)


def question(policy: Policy, condition: Condition, scenario: str, options: Sequence[str], form: Form) -> Question:
    """Return the question for a client's scenario; its record has made-up sides, which choosing does not need."""
    stated = condition.stated
    names = [axis.name for axis in policy.ref.space.axes]
    axis, side = stated[0] if stated else (names[0] if names else "none", None)
    record = PairedExample("request", axis, scenario, tuple(Option(text, 0) for text in options))
    return Question(record, form, side, others=stated[1:])


def one_of(
    options: Sequence[str], probabilities: NDArray[np.float64] | None, rows: Sequence[ScoredQuestion]
) -> dict[str, Any]:
    """Return the response fields of the best option; None values if it was not requested."""
    if probabilities is None:
        return {"choice": None, "letter": None, "option": None, "options": None}
    (index,) = best(rows[0][0], probabilities)
    # If poles are mixed, there is no single log-probability.
    scores = rows[0][1] if len(rows) == 1 else None
    listed = [
        OptionScore(
            index=i,
            letter=LETTERS[i],
            text=text,
            logprob=None if scores is None else float(scores[1][i]),
            num_tokens=None if scores is None else scores[0].branches[i].num_labels,
            probability=float(probabilities[i]),
        )
        for i, text in enumerate(options)
    ]
    return {"choice": index, "letter": LETTERS[index], "option": options[index], "options": listed}


def all_of(
    probabilities: NDArray[np.float64] | None, rows: Sequence[ScoredQuestion], reasons: Sequence[str]
) -> dict[str, Any]:
    """Return the response fields of the *All* set; None values, with the reason, if there is none."""
    if probabilities is None:
        return {"all": None, "all_probability": None, "all_reason": reasons[0] if reasons else None}
    all_question = rows[0][0]
    subset = best(all_question, probabilities)
    place = [frozenset(candidate) for candidate in candidates(all_question)].index(subset)
    return {"all": sorted(subset), "all_probability": float(probabilities[place])}


def usage(examples: Sequence[BranchedExample]) -> Usage:
    """Return OpenAI's token counts; a prefix that branches share counts once."""
    tokens = sum(example.num_tokens for example in examples)
    return Usage(prompt_tokens=tokens, completion_tokens=0, total_tokens=tokens)
