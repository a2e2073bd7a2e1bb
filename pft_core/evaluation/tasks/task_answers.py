"""Ask a policy the items of a task: it chooses the likeliest of an item's answers, or generates text greedily."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pft_core.data import Reject
from pft_core.encoding import BranchedExample, TokenizedAnswer, branched_example, tokenize
from pft_core.evaluation.answers import AnswerSettings, score_branches, write_greedily
from pft_core.evaluation.tasks.task import Reply, TaskItem

if TYPE_CHECKING:
    from pft_core.scoring import BranchScorer


def answer_items(
    items: Sequence[TaskItem], *, model: Any, tokenizer: Any, settings: AnswerSettings
) -> list[Reply | Reject]:
    """Answer every item, in order; an item longer than `settings.max_length` tokens is rejected."""
    with_answers = [item for item in items if item.answers]
    free = [item for item in items if not item.answers]
    from pft_core.scoring import BranchScorer

    choices = iter(_choose(with_answers, BranchScorer(model), tokenizer, settings) if with_answers else [])
    texts = iter(_generate(free, model, tokenizer, settings) if free else [])
    return [next(choices) if item.answers else next(texts) for item in items]


def _choose(
    items: Sequence[TaskItem], scorer: "BranchScorer", tokenizer: Any, settings: AnswerSettings
) -> list[Reply | Reject]:
    encoded = encode_items(items, tokenizer=tokenizer, settings=settings)
    examples = [e for e in encoded if isinstance(e, BranchedExample)]
    logps = iter(score_branches(examples, scorer=scorer, tokens_per_batch=settings.tokens_per_batch))
    return [example if isinstance(example, Reject) else likeliest(example, next(logps)) for example in encoded]


def likeliest(example: BranchedExample, logps: NDArray[np.float32]) -> tuple[int, ...]:
    """Return the places of the answers with the highest log-probability per token, since texts differ in length."""
    num_labels = np.array([branch.num_labels for branch in example.branches], dtype=np.float32)
    means = logps / num_labels
    return tuple(int(place) for place in np.flatnonzero(means == means.max()))


def encode_items(
    items: Sequence[TaskItem], *, tokenizer: Any, settings: AnswerSettings
) -> list[BranchedExample | Reject]:
    """Encode each item as a prompt and one branch for each of its answers, in order."""
    frame = settings.style.frame
    prompts = [_framed(item, settings) for item in items for _ in item.answers]
    answers = [frame.answer_lead + answer for item in items for answer in item.answers]
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    lengths = [len(prompt) for prompt in prompts]
    rows = iter(tokenize(texts, lengths, [(0, 0)] * len(texts), tokenizer) if texts else [])
    return [_branches(item, list(islice(rows, len(item.answers))), settings) for item in items]


def _framed(item: TaskItem, settings: AnswerSettings) -> str:
    return settings.style.frame.opening + item.prompt + settings.style.frame.closing


def _branches(item: TaskItem, rows: Sequence[TokenizedAnswer], settings: AnswerSettings) -> BranchedExample | Reject:
    rows_ids = [row.ids[:-1] for row in rows]  # without the EOS that ends an answer
    longest = max(len(ids) for ids in rows_ids)
    if longest > settings.max_length:
        return _overlong(item, longest, settings)
    starts = [row.answer_start for row in rows]
    prompts = [ids[:start] for ids, start in zip(rows_ids, starts, strict=True)]
    answers = [ids[start:] for ids, start in zip(rows_ids, starts, strict=True)]
    return branched_example(item.id, prompts, answers, range(len(rows)))


def _generate(items: Sequence[TaskItem], model: Any, tokenizer: Any, settings: AnswerSettings) -> list[Reply | Reject]:
    texts = [_framed(item, settings) for item in items]
    rows = tokenize(texts, [len(text) for text in texts], [(0, 0)] * len(texts), tokenizer)
    prompts = [row.ids[:-1] for row in rows]  # without the EOS that ends an answer
    lengths = [len(ids) + settings.max_new_tokens for ids in prompts]
    fitting = [ids for ids, length in zip(prompts, lengths, strict=True) if length <= settings.max_length]
    replies = iter(write_greedily(fitting, model=model, tokenizer=tokenizer, settings=settings))
    return [
        next(replies) if length <= settings.max_length else _overlong(item, length, settings)
        for item, length in zip(items, lengths, strict=True)
    ]


def _overlong(item: TaskItem, num_tokens: int, settings: AnswerSettings) -> Reject:
    return Reject(item.id, "prompt", "overlong", f"{num_tokens} tokens, max_length is {settings.max_length}")
