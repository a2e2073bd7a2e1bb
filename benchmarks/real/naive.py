"""Scoring as one writes it first with transformers: a full row for every candidate, in padded batches."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pft_core.data import Reject
from pft_core.encoding import BranchedExample
from pft_core.evaluation import Answer, AnswerSettings, Question, best, comparable, encode_options

Row = tuple[NDArray[np.int32], int]  # token ids, and how many of them at the end are labels


def answer_row_by_row(
    questions: Sequence[Question], *, model: Any, tokenizer: Any, settings: AnswerSettings
) -> list[Answer]:
    """Choose the candidate with the highest log-probability, as our evaluation does, without sharing any token."""
    encoded = encode_options(questions, tokenizer=tokenizer, settings=settings)
    rows = [row for example in encoded if isinstance(example, BranchedExample) for row in rows_of(example)]
    logps = iter(row_logps(rows, model=model, tokens_per_batch=settings.tokens_per_batch))
    answers: list[Answer] = []
    for question, example in zip(questions, encoded, strict=True):
        if isinstance(example, Reject):
            answers.append(example)
            continue
        scores = np.array([next(logps) for _ in example.branches], dtype=np.float32)
        answers.append(best(question, comparable(question, example, scores, settings)))
    return answers


def rows_of(example: BranchedExample) -> list[Row]:
    return [(np.concatenate([example.prefix_ids, b.input_ids]), b.num_labels) for b in example.branches]


@torch.no_grad()
def row_logps(rows: Sequence[Row], *, model: Any, tokens_per_batch: int) -> list[float]:
    """Return the log-probability of each row's labels; rows of similar lengths share a batch."""
    logps = np.zeros(len(rows))
    for members in batches(rows, tokens_per_batch=tokens_per_batch):
        width = len(rows[members[0]][0])
        ids, mask = (torch.zeros(len(members), width, dtype=torch.long) for _ in range(2))
        for place, i in enumerate(members):
            row, _ = rows[i]
            ids[place, : len(row)], mask[place, : len(row)] = torch.from_numpy(row), 1
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for place, i in enumerate(members):
            row, num_labels = rows[i]
            of_labels = logits[place, len(row) - num_labels - 1 : len(row) - 1].float().log_softmax(-1)
            labels = torch.from_numpy(row[-num_labels:]).long()
            logps[i] = float(of_labels.gather(-1, labels[:, None]).sum())
    return logps.tolist()


def batches(rows: Sequence[Row], *, tokens_per_batch: int) -> Iterator[list[int]]:
    """Yield the places of the rows of each batch, from long to short: as many as fit, padded to the longest."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    while order:
        fitting = max(1, tokens_per_batch // len(rows[order[0]][0]))
        yield order[:fitting]
        order = order[fitting:]
