"""Few-shot history prompts: the preference is not stated but shown, by items of the axis that were solved with it.

The history stands inside the user's message, before the question; both are rendered without a condition. The two poles
of a question get the same items with other answers, so that nothing but these answers tells the poles apart.
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

    answer: how the prompts with their history are answered, by likelihood or by generation. examples: training
    records. Where a prompt is too long, the oldest items (those that stand first) are left out, and it is rejected
    where even a single one does not fit. shown: gets, by number of items shown, how many questions were answered so.
    Raises UserError where an axis has too few records.
    """
    pool = _pool(examples)
    texts = {
        i: _history(q, _drawn(q.record, pool, num_examples=num_examples, seed=seed), style=style, space=space)
        for i, q in enumerate(questions)
        if q.side is not None
    }
    unasked = [i for i, q in enumerate(questions) if q.side is None]
    answers: dict[int, Answer] = dict(zip(unasked, answer([questions[i] for i in unasked]), strict=True))
    waiting = list(texts)
    for count in range(num_examples, 0, -1):
        asked = [replace(questions[i], side=None, history="".join(texts[i][-count:])) for i in waiting]
        answers.update(zip(waiting, answer(asked), strict=True))
        shown[count] += sum(not isinstance(answers[i], Reject) for i in waiting)
        waiting = [i for i in waiting if _is_overlong(answers[i])]
    return [answers[i] for i in range(len(questions))]


def _is_overlong(answer: Answer) -> bool:
    return isinstance(answer, Reject) and answer.reason == "overlong"


def _pool(examples: Sequence[PairedExample]) -> dict[str, list[PairedExample]]:
    """Return the records of each axis in the order of their ids, each scenario once."""
    pool: dict[str, dict[str, PairedExample]] = {}
    for example in sorted(examples, key=lambda e: e.id):
        pool.setdefault(example.axis, {}).setdefault(example.scenario, example)
    return {axis: list(by_scenario.values()) for axis, by_scenario in pool.items()}


def _drawn(
    record: PairedExample, pool: dict[str, list[PairedExample]], *, num_examples: int, seed: int
) -> list[PairedExample]:
    """Draw items of other scenarios, from nothing but the record's id and the seed."""
    others = [e for e in pool.get(record.axis, []) if e.scenario != record.scenario]
    if len(others) < num_examples:
        raise UserError(
            f"num_examples={num_examples}: axis {record.axis!r} has {len(others)} training records of scenarios other "
            f"than that of item {record.id}: ask for fewer"
        )
    return random.Random(f"{seed}:history:{record.id}").sample(others, num_examples)


def _history(
    question: Question, examples: Sequence[PairedExample], *, style: PromptStyle, space: PreferenceSpace
) -> list[str]:
    """Render each item with the answer of the question's pole, the oldest first."""
    assert question.side is not None
    plain = replace(style, frame=Frame())  # inside the message the frame stands around all of it
    return [_solved(e, question.side, question.form, plain, space) for e in examples]


def _solved(example: PairedExample, side: int, form: Form, style: PromptStyle, space: PreferenceSpace) -> str:
    prompt = render_prompt(example, side=None, form=form, style=style, space=space)
    answer = render_answer(example, target_options(example, side=side, form=form), form=form, style=style)
    return f"{prompt.text}{answer}\n\n"
