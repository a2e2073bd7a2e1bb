"""Few-shot history prompts: items of the axis with their answers show the preference, and no prompt states it.

The history comes before the question inside the user's message; both are rendered without a condition. The two poles of
a question get the same items with different answers, so that only these answers distinguish the poles.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pft_core.data import Form, PairedExample, PreferenceSpace, Reject
from pft_core.errors import UserError
from pft_core.evaluation.answers import Answer, Answerer, Question
from pft_core.prompts import Frame, PromptStyle, render_answer, render_prompt, target_options


def by_history(
    questions: Sequence[Question],
    *,
    answer: Answerer,
    style: PromptStyle,
    space: PreferenceSpace,
    examples: Sequence[PairedExample],
    num_examples: int,
    seed: int,
    shown: Counter[int],
) -> list[Answer]:
    """Answer each question after `num_examples` solved items of its axis and pole; with side None, after none.

    answer: answers the prompts with their history, by likelihood or by generation. examples: training records. If a
    prompt is too long, the oldest items (those that come first) are dropped; if even a single item does not fit, the
    question is rejected. shown: counts the answered questions by their number of items. Raises UserError if an axis has
    too few records.
    """
    pool = _pool(examples)
    texts = {
        i: _history(q, _drawn(q.record, pool, num_examples=num_examples, seed=seed), style=style, space=space)
        for i, q in enumerate(questions)
        if q.side is not None
    }
    unconditioned = [i for i, q in enumerate(questions) if q.side is None]
    answers: dict[int, Answer] = dict(zip(unconditioned, answer([questions[i] for i in unconditioned]), strict=True))
    waiting = list(texts)
    for count in range(num_examples, 0, -1):
        prompted = [replace(questions[i], side=None, history="".join(texts[i][-count:])) for i in waiting]
        answers.update(zip(waiting, answer(prompted), strict=True))
        shown[count] += sum(not isinstance(answers[i], Reject) for i in waiting)
        waiting = [i for i in waiting if _is_overlong(answers[i])]
    return [answers[i] for i in range(len(questions))]


def _is_overlong(answer: Answer) -> bool:
    return isinstance(answer, Reject) and answer.reason == "overlong"


def _pool(examples: Sequence[PairedExample]) -> dict[str, list[PairedExample]]:
    """Return the records of each axis in order of their ids, each scenario once."""
    pool: dict[str, dict[str, PairedExample]] = {}
    for example in sorted(examples, key=lambda e: e.id):
        pool.setdefault(example.axis, {}).setdefault(example.scenario, example)
    return {axis: list(by_scenario.values()) for axis, by_scenario in pool.items()}


def _drawn(
    record: PairedExample, pool: dict[str, list[PairedExample]], *, num_examples: int, seed: int
) -> list[PairedExample]:
    """Draw items of other scenarios; the draw depends only on the record's id and the seed."""
    others = [e for e in pool.get(record.axis, []) if e.scenario != record.scenario]
    if len(others) < num_examples:
        raise UserError(
            f"num_examples={num_examples}: axis {record.axis!r} has only {len(others)} training records with another "
            f"scenario than item {record.id}: set num_examples to at most {len(others)}"
        )
    return random.Random(f"{seed}:history:{record.id}").sample(others, num_examples)


def _history(
    question: Question, examples: Sequence[PairedExample], *, style: PromptStyle, space: PreferenceSpace
) -> list[str]:
    """Render each item with the answer of the question's pole, oldest first."""
    assert question.side is not None
    plain = replace(style, frame=Frame())  # the message as a whole has one frame
    return [_solved(e, question.side, question.form, plain, space) for e in examples]


def _solved(example: PairedExample, side: int, form: Form, style: PromptStyle, space: PreferenceSpace) -> str:
    prompt = render_prompt(example, side=None, form=form, style=style, space=space)
    answer = render_answer(example, target_options(example, side=side, form=form), form=form, style=style)
    return f"{prompt.text}{answer}\n\n"
