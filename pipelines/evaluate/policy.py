"""Load a policy with its tokenizer, as answerers of questions."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from pft_core.evaluation import Answer, Answerer, Question, by_generation, by_likelihood
from pft_core.policies import load_policy, load_tokenizer, refuse_foreign_tokenizer
from pft_core.scoring import BranchScorer
from pipelines.evaluate.answering_job import AnsweringJob


def load_asked(job: AnsweringJob) -> tuple[Any, Any]:
    """Load the policy, without its base, and its tokenizer. Raises UserError."""
    torch.set_num_threads(job.num_threads)
    ref = job.ref
    tokenizer = load_tokenizer(ref.weights or ref.base)
    model = load_policy(ref.base, ref.adapter, ref.weights, precision=job.precision, device=job.device)
    refuse_foreign_tokenizer(model, tokenizer)
    return model, tokenizer


def answerers(job: AnsweringJob) -> tuple[Answerer, Answerer | None]:
    """Load a policy; return answerers for it and its base (None if it is its own base). Raises UserError."""
    torch.set_num_threads(job.num_threads)
    ref = job.ref
    load = partial(load_policy, ref.base, precision=job.precision, device=job.device)
    tokenizer = load_tokenizer(ref.weights or ref.base)
    policy = load(adapter=ref.adapter, weights=ref.weights)
    refuse_foreign_tokenizer(policy, tokenizer)
    answer = _answerer(job, policy, tokenizer)
    if ref.weights is not None:
        return answer, _answerer(job, load(adapter=None, weights=None), tokenizer)
    return answer, None if ref.adapter is None else partial(without_adapter, policy, answer)


def _answerer(job: AnsweringJob, model: Any, tokenizer: Any) -> Answerer:
    if job.generate:
        return partial(by_generation, model=model, tokenizer=tokenizer, settings=job.settings)
    return partial(by_likelihood, scorer=BranchScorer(model), tokenizer=tokenizer, settings=job.settings)


def without_adapter(policy: Any, answer: Answerer, questions: Sequence[Question]) -> list[Answer]:
    """Answer as the base model without its LoRA adapter."""
    with policy.disable_adapter():
        return answer(questions)
