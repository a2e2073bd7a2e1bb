"""Answers of a base model, kept in the folder of a data set, so that the same questions are asked once."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from pft_core.data import Reject
from pft_core.evaluation.answers import Answer, Answerer, Question
from pft_core.evaluation.metrics import WeightedChoice
from pft_core.files import digest, read_checked_lines, write_checked_lines

BASE_ANSWERS_NAME = "base_answers"  # the folder in the folder of a data set


class KeptAnswers:
    """An answerer that keeps its answers, one file for each call.

    A call is kept whole, so that its answers are exactly those of asking again: in other batches, sums would differ in
    their last bits. A file that is missing or damaged is written again.
    """

    def __init__(self, load: Callable[[], Answerer], folder: Path):
        """Keep answers in a folder. load: returns the answerer, and is called if a question has no kept answer.

        folder: in the folder of base answers; its name is a digest of all that decides answers besides the questions.
        """
        self._load, self._folder = load, folder
        self.calls_reused = 0

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """Return the answers to the questions, in their order."""
        path = self._folder / f"{digest([asdict(question) for question in questions])}.jsonl"
        lines = read_checked_lines(path)
        if lines is not None and len(lines) == len(questions):
            self.calls_reused += 1
            return [_from_line(line) for line in lines]
        answers = self._answer(questions)
        with suppress(OSError):  # the data set is read-only, or is not on this node
            for folder in (self._folder.parent, self._folder):
                folder.mkdir(exist_ok=True)
            write_checked_lines(path, [_to_line(answer) for answer in answers])
        return answers

    @cached_property
    def _answer(self) -> Answerer:
        return self._load()


def _to_line(answer: Answer) -> str:
    if isinstance(answer, Reject):
        return json.dumps({"reject": asdict(answer)})
    chosen = None if answer is None else sorted(answer)
    shares = {"probabilities": answer.probabilities} if isinstance(answer, WeightedChoice) else {}
    return json.dumps({"chosen": chosen, **shares})


def _from_line(line: str) -> Answer:
    raw: dict[str, Any] = json.loads(line)
    if "reject" in raw:
        return Reject(**raw["reject"])
    if raw["chosen"] is None:
        return None
    return WeightedChoice(raw["chosen"], raw["probabilities"]) if "probabilities" in raw else frozenset(raw["chosen"])
