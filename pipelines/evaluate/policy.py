"""Load a policy with its tokenizer, as answerers of questions."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import transformers

from pft_core.encoding import tokenizer_digest
from pft_core.evaluation import Answer, Answerer, KeptAnswers, Question, by_generation, by_likelihood
from pft_core.files import digest
from pft_core.policies import base_digest, load_policy, load_tokenizer, refuse_foreign_tokenizer
from pft_core.prompts import template_digest
from pft_core.scoring import BranchScorer
from pipelines.evaluate.answering_job import AnsweringJob
from pipelines.jobs import code_digest


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

    def loaded_base() -> Answerer:
        base = load(adapter=None, weights=None)
        refuse_foreign_tokenizer(base, tokenizer)
        return _answerer(job, base, tokenizer)

    if ref.adapter is None and ref.weights is None:
        return keeping_answers(job, tokenizer, loaded_base), None
    policy = load(adapter=ref.adapter, weights=ref.weights)
    refuse_foreign_tokenizer(policy, tokenizer)
    answer = _answerer(job, policy, tokenizer)
    base = loaded_base if ref.weights is not None else lambda: partial(without_adapter, policy, answer)
    return answer, keeping_answers(job, tokenizer, base)


def keeping_answers(job: AnsweringJob, tokenizer: Any, load: Callable[[], Answerer]) -> Answerer:
    """Return the answerer of a job's base, which keeps its answers if the job has a folder for them."""
    if job.base_answers is None:
        return load()
    settings, template = job.settings, template_digest(job.settings.style, job.settings.space)
    words = [template, settings.style.to_dict(), tokenizer_digest(tokenizer), tokenizer.chat_template]
    limits = [settings.max_length, settings.tokens_per_batch, settings.max_new_tokens]
    versions = [code_digest(), torch.__version__, transformers.__version__]
    # The number of threads is left out: it changes sums less than the places to which probabilities are rounded.
    decided = [base_digest(job.ref.base), words, limits, job.generate, job.precision, job.use_gpu, versions]
    return KeptAnswers(load, job.base_answers / digest(decided))


def _answerer(job: AnsweringJob, model: Any, tokenizer: Any) -> Answerer:
    if job.generate:
        return partial(by_generation, model=model, tokenizer=tokenizer, settings=job.settings)
    return partial(by_likelihood, scorer=BranchScorer(model), tokenizer=tokenizer, settings=job.settings)


def without_adapter(policy: Any, answer: Answerer, questions: Sequence[Question]) -> list[Answer]:
    """Answer as the base model without its LoRA adapter."""
    with policy.disable_adapter():
        return answer(questions)
