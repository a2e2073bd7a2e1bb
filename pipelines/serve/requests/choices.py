"""Choices and scores: log-probabilities of answers, compared as evaluation compares them."""

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
)
from pipelines.serve.serve_config import ServeConfig
from pipelines.serve.task_groups import together

Scores = tuple[BranchedExample, NDArray[np.float32]]
Answered = tuple[Question, Scores | None]  # None: it could not be scored


class ChoiceHandler:
    """Answers /v1/choose and /v1/score. Raises UserError for what a client got wrong."""

    def __init__(self, config: ServeConfig, asker: PolicyResolver, backend: Backend, metrics: Metrics):
        self._config, self._asker, self._backend, self._metrics = config, asker, backend, metrics

    async def choose(self, body: ChooseRequest) -> ChooseResponse:
        """Choose an option, and the set of all that fit, by the log-probabilities of the answers that name them."""
        asked = await self._asker.asked(body.model, body.preference)
        return await self.chosen(asked, body.scenario, body.options, body.forms)

    async def chosen(
        self, asked: ResolvedPolicy, scenario: str, options: Sequence[str], forms: Sequence[Form]
    ) -> ChooseResponse:
        """Choose under what is asked; forms: `one`, `all` or both."""
        wanted = sorted(set(forms), reverse=True)  # `one` first
        unscored = f"{len(options)} options: sets are scored of up to {MAX_OPTIONS_FOR_SUBSETS}"
        parts = [part for part, _ in asked.parts]
        questions = [question(asked.policy, part, scenario, options, form) for form in wanted for part in parts]
        self._refuse_too_many(sum(len(candidates(each)) for each in questions if unscorable(each) is None))
        self._asker.refuse_overlong("scenario and options", scenario, *options)
        examples = await self._asker.apart(self._encoded, asked.policy, questions)
        scorable = [example for example in examples if isinstance(example, BranchedExample)]
        logps = iter(await self._scored(asked, scorable))
        rows: list[Answered] = [
            (q, None if isinstance(e, Reject) else (e, next(logps))) for q, e in zip(questions, examples, strict=True)
        ]
        by_form = {form: rows[len(parts) * i : len(parts) * (i + 1)] for i, form in enumerate(wanted)}
        mixed = {form: self._mixed(asked, rows) for form, rows in by_form.items()}
        rejects = [unscored for example in examples if isinstance(example, Reject)]
        return ChooseResponse(
            **asked.told,
            **one_of(options, mixed.get("one"), by_form.get("one", [])),
            **all_of(mixed.get("all"), by_form.get("all", []), rejects),
            usage=usage(scorable),
        )

    async def score(self, body: ScoreRequest) -> ScoreResponse:
        """Return the log-probability of every answer under every preference."""
        asked = [await self._asker.asked(body.model, preference) for preference in body.preferences]
        if any(len(each.parts) > 1 for each in asked):
            raise UserError("preferences: a weight between two poles has no log-probability of its own: give poles")
        self._refuse_too_many(len(body.answers) * len(asked))
        for answer in body.answers:
            self._asker.refuse_overlong("scenario and answers", body.scenario, answer)
        examples = [await self._asker.apart(self._answers, each, body.scenario, body.answers) for each in asked]
        rows = await together(*(self._scored(a, [e]) for a, e in zip(asked, examples, strict=True)))
        results = [
            PreferenceScores(**each.told, answers=[
                AnswerScore(logprob=float(logp), num_tokens=branch.num_labels)
                for logp, branch in zip(row[0], example.branches, strict=True)
            ])
            for each, example, row in zip(asked, examples, rows, strict=True)
        ]  # fmt: skip
        return ScoreResponse(results=results, usage=usage(examples))

    def _asking(self, policy: Policy) -> AnswerSettings:
        engine = self._config.engine
        return AnswerSettings(
            policy.ref.style, policy.ref.space, engine.max_length, engine.tokens_per_batch, max_new_tokens=1
        )

    def _encoded(self, policy: Policy, questions: Sequence[Question]) -> list[BranchedExample | Reject]:
        tokenizer, style, space = self._asker.catalog.tokenizer, policy.ref.style, policy.ref.space
        for q in questions:
            prompt = render_prompt(q.record, side=q.side, form=q.form, style=style, space=space, others=q.others)
            self._asker.refuse_long_prompt("scenario and options", prompt.text)
        examples = encode_options(questions, tokenizer=tokenizer, settings=self._asking(policy))
        for example in examples:
            if isinstance(example, Reject) and example.reason != "too_many_subsets":
                kind = TooLongError if example.reason == "overlong" else ControlTokenError
                raise kind(f"scenario and options: {example.detail}")
        return examples

    def _answers(self, asked: ResolvedPolicy, scenario: str, answers: Sequence[str]) -> BranchedExample:
        """Encode free answers as branches of one prompt."""
        self._asker.refuse_control_tokens("scenario and answers", scenario, *answers)
        style = asked.policy.ref.style
        prompt = style.frame.opening + state_in_message(scenario, asked.lines, style) + style.frame.closing
        texts = [prompt + style.frame.answer_lead + answer for answer in answers]
        self._asker.refuse_long_prompt("scenario and answers", max(texts, key=len))
        tokenizer = self._asker.catalog.tokenizer
        rows = tokenize(texts, [len(prompt)] * len(texts), [(0, 0)] * len(texts), tokenizer)
        longest, most = max(len(row.ids) for row in rows), self._config.engine.max_length
        if longest > most:
            raise TooLongError(f"scenario and answers: {longest} tokens, this server takes {most}")
        prompts, ends = [row.ids[: row.answer_start] for row in rows], [row.ids[row.answer_start :] for row in rows]
        return branched_example("score", prompts, ends, range(len(rows)))

    async def _scored(self, asked: ResolvedPolicy, examples: Sequence[BranchedExample]) -> list[NDArray[np.float32]]:
        if not examples:
            return []
        self._metrics.tokens.labels("prompt").inc(sum(example.num_tokens for example in examples))
        scores = await self._backend.score(examples, asked.policy.source, asked.steering)
        if not all(np.isfinite(logps).all() for logps in scores):
            raise RequestFault(f"{asked.policy.id}: its log-probabilities are no numbers: its weights are damaged")
        return scores

    def _refuse_too_many(self, branches: int) -> None:
        most = self._config.limits.branches
        if branches > most:
            raise UserError(f"{branches} answers to score, this server takes {most} at once: ask fewer")

    def _mixed(self, asked: ResolvedPolicy, rows: Sequence[Answered]) -> NDArray[np.float64] | None:
        """Return the candidates' probabilities, mixed over the parts; None where they were not scored."""
        mixed: Any = 0.0
        for (each, found), (_, weight) in zip(rows, asked.parts, strict=True):
            if found is None:
                return None
            mixed = mixed + weight * probabilities_of(comparable(each, *found, self._asking(asked.policy)))
        return np.asarray(mixed)


def question(policy: Policy, condition: Condition, scenario: str, options: Sequence[str], form: Form) -> Question:
    """Make a record of what a client shows; the sides of its options are not known and not needed."""
    stated = condition.stated
    names = [axis.name for axis in policy.ref.space.axes]
    axis, side = stated[0] if stated else (names[0] if names else "none", None)
    record = PairedExample("request", axis, scenario, tuple(Option(text, 0) for text in options))
    return Question(record, form, side, others=stated[1:])


def one_of(
    options: Sequence[str], probabilities: NDArray[np.float64] | None, rows: Sequence[Answered]
) -> dict[str, Any]:
    """Return the fields of the choice; empty ones where it was not asked for."""
    if probabilities is None:
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


def all_of(
    probabilities: NDArray[np.float64] | None, rows: Sequence[Answered], rejects: Sequence[str]
) -> dict[str, Any]:
    """Return the fields of the *All* set; empty ones, with the reason, where there is none."""
    if probabilities is None:
        return {"all": None, "all_probability": None, "all_reason": rejects[0] if rejects else None}
    asked = rows[0][0]
    chosen = best(asked, probabilities)
    place = [frozenset(candidate) for candidate in candidates(asked)].index(chosen)
    return {"all": sorted(chosen), "all_probability": float(probabilities[place])}


def usage(examples: Sequence[BranchedExample]) -> dict[str, Any]:
    """Return OpenAI's token counts; a prefix that branches share counts once."""
    tokens = sum(example.num_tokens for example in examples)
    return {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
