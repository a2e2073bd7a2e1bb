"""General capability: two-choice questions before and after training, and the drop with its interval.

A policy is asked in the frame it was trained in (a chat template or plain text), but without a condition. Its answer is
the letter with the higher log-probability. All letters have the same length, so their log-probabilities are comparable;
tokens after the letter do not count, as in lm-eval.
"""

from __future__ import annotations  # only types name the scorer, so a driver reads items without torch

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pft_core.data import (
    Reject,
    RowFault,
    file_parts,
    files_in,
    question_of,
    read_rows,
    refuse_unused,
    row_parser,
    text_of,
)
from pft_core.encoding import BranchedExample
from pft_core.errors import UserError
from pft_core.evaluation.answers import AnswerSettings, score_branches
from pft_core.evaluation.significance import interval_over_seeds
from pft_core.evaluation.tasks.task import TaskItem
from pft_core.evaluation.tasks.task_answers import encode_items as encode_task_items
from pft_core.files import digest

if TYPE_CHECKING:
    from pft_core.scoring import BranchScorer

_LETTER = re.compile(r"\([A-Z]\)")
_READ = ("correct", "incorrect", "correct_full_text", "incorrect_full_text", "category")  # the prompt holds the texts


@dataclass(frozen=True)
class CapabilityItem:
    """A question whose prompt lists lettered answers; correct and incorrect are two of the letters, such as "(A)"."""

    id: str
    prompt: str
    correct: str
    incorrect: str
    category: str | None


@dataclass(frozen=True)
class CapabilityAnswer:
    """The score of one item's answer: 1 right, 0 wrong, 0.5 undecided, or the score of the item's own task.

    correct_is_first: whether the correct letter comes first, None if answers have no order.
    """

    item_id: str
    category: str | None
    score: float
    correct_is_first: bool | None = None


def read_items(path: Path) -> list[CapabilityItem | Reject]:
    """Read `{"prompt", "correct": "(A)", "incorrect": "(B)", "category"}` from a JSON list, JSON lines or Parquet.

    A bad row becomes a Reject in its place. Raises UserError if the file cannot be read or holds no item.
    """
    rows = (row for file in files_in(str(path)) for part in file_parts(file, str(file)) for row in read_rows(part))
    items = [row if isinstance(row, Reject) else two_choice_item(row, where, None) for where, row in rows]
    if not any(isinstance(item, CapabilityItem) for item in items):
        first = next((f"; {r.row}: {r.key_path}: {r.detail}" for r in items if isinstance(r, Reject)), "")
        raise UserError(
            f'{path}: none of its {len(items)} rows is a question with keys "prompt", "correct": "(A)" and '
            f'"incorrect": "(B)"{first}'
        )
    return items


@row_parser
def two_choice_item(row: dict[str, Any], _: str | None) -> CapabilityItem:
    """Read one row. The prompt must list both letters, or there is nothing to choose from."""
    key, _ = question_of(row)
    prompt = text_of(row, key)
    refuse_unused(row, prompt, used=(key, *_READ))
    correct, incorrect = (_listed_letter(text_of(row, key), prompt, key) for key in ("correct", "incorrect"))
    if correct == incorrect:
        raise RowFault("incorrect", "answers_overlap", f"{incorrect} is also the correct answer")
    category = None if row.get("category") is None else text_of(row, "category")
    return CapabilityItem(digest([prompt, correct, incorrect]), prompt, correct, incorrect, category)


def _listed_letter(letter: str, prompt: str, key: str) -> str:
    if not _LETTER.fullmatch(letter):
        raise RowFault(key, "not_a_letter", f'expected a letter such as "(A)", got {letter!r}')
    if letter not in prompt:
        raise RowFault(key, "letter_not_listed", f"the prompt does not list {letter}")
    return letter


def ask_items(
    items: Sequence[CapabilityItem], *, scorer: BranchScorer, tokenizer: Any, settings: AnswerSettings
) -> list[CapabilityAnswer | Reject]:
    """Answer every item by likelihood, in order; an item longer than `settings.max_length` tokens is rejected."""
    encoded = encode_items(items, tokenizer=tokenizer, settings=settings)
    examples = [e for e in encoded if isinstance(e, BranchedExample)]
    logps = iter(score_branches(examples, scorer=scorer, tokens_per_batch=settings.tokens_per_batch))
    return [
        example if isinstance(example, Reject) else _answer(item, next(logps))
        for item, example in zip(items, encoded, strict=True)
    ]


def encode_items(
    items: Sequence[CapabilityItem], *, tokenizer: Any, settings: AnswerSettings
) -> list[BranchedExample | Reject]:
    """Encode each item as a prompt and two branches: the correct letter and the incorrect one."""
    questions = [TaskItem(item.id, item.prompt, (item.correct, item.incorrect)) for item in items]
    return encode_task_items(questions, tokenizer=tokenizer, settings=settings)


def task_items(path: Path, _: AnswerSettings) -> list[TaskItem | Reject]:
    """Return the items of a two-choice file for `pft evaluate`, letters in order. Raises UserError like read_items."""
    return [item if isinstance(item, Reject) else _task_item(item) for item in read_items(path)]


def _task_item(item: CapabilityItem) -> TaskItem:
    letters = (min(item.correct, item.incorrect), max(item.correct, item.incorrect))
    return TaskItem(item.id, item.prompt, letters, gold=letters.index(item.correct))


def right_letter(item: TaskItem, place: int) -> float:
    """Return 1 if the answer at this place is the correct letter, else 0."""
    return float(place == item.gold)


def _answer(item: CapabilityItem, logps: NDArray[np.float32]) -> CapabilityAnswer:
    correct, incorrect = logps
    score = float(1 + np.sign(correct - incorrect)) / 2
    return CapabilityAnswer(item.id, item.category, score, item.correct < item.incorrect)


def position_baseline(answered: Sequence[CapabilityAnswer]) -> float | None:
    """Return the share of items that always choosing the first letter gets right, None if answers have no order."""
    if any(a.correct_is_first is None for a in answered):
        return None
    return float(np.mean([a.correct_is_first for a in answered]))


def scores(runs: Sequence[Sequence[CapabilityAnswer]]) -> NDArray[np.float64]:
    """Return the scores of S runs on the same N items [S, N]. Raises UserError if runs answered different items."""
    run_ids = [[a.item_id for a in run] for run in runs]
    for ids in run_ids:
        if ids != run_ids[0]:
            raise UserError(
                f"two runs answered different capability items ({len(run_ids[0])} and {len(ids)} items): evaluate both "
                "with the same file of questions, tokenizer and encoding.max_length"
            )
    return np.array([[a.score for a in run] for run in runs])


def mean_with_interval(values_SN: NDArray[np.float64], item_ids: Sequence[str]) -> tuple[float, float, float]:
    """Return the mean over seeds S and items N with its 95% bootstrap interval (low, high), see interval_over_seeds."""
    return float(values_SN.mean()), *interval_over_seeds(values_SN, np.ones_like(values_SN), item_ids)


def losses(before: Sequence[CapabilityAnswer], after: Sequence[Sequence[CapabilityAnswer]]) -> NDArray[np.float64]:
    """Return the score that each item lost in each of S runs after training [S, N]. Raises UserError if runs answered
    different items."""
    before_SN, after_SN = np.split(scores([before, *after]), [1])
    return before_SN - after_SN


def drop(before: Sequence[CapabilityAnswer], after: Sequence[Sequence[CapabilityAnswer]]) -> tuple[float, float, float]:
    """Return how far the mean score falls from before training to after it, and its 95% interval (low, high).

    The interval is paired: it resamples each item's own loss, with all its seeds. Raises UserError if runs answered
    different items, or fewer than two.
    """
    return mean_with_interval(losses(before, after), [a.item_id for a in before])
