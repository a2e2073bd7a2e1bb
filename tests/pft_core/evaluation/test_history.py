"""History prompts: solved items before the question, the same for both poles, and every dropped item counted."""

from collections import Counter
from functools import partial

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from pft_core.data.records import Reject, paired_example
from pft_core.encoding.tokens import tokenize
from pft_core.errors import UserError
from pft_core.evaluation.answers import AnswerSettings, Question, ask, by_generation, by_likelihood, encode_options
from pft_core.evaluation.history import by_history
from pft_core.evaluation.metrics.outcome import Outcome
from pft_core.prompts.rendering import Frame, PromptStyle, render_answer, render_prompt, target_options
from pft_core.scoring.scorer import BranchScorer
from tests.builders import SPACE, record

STYLE = PromptStyle()
TRAIN = [record(number, axis=axis) for number in range(20, 30) for axis in ("Risk", "Pace")]
ITEM = record(1)


class RecordingAnswerer:
    """Records its questions, and rejects histories of more than `max_items` items as overlong."""

    def __init__(self, max_items: int = 99):
        self.questions: list[Question] = []
        self.max_items = max_items

    def __call__(self, questions):
        self.questions += questions
        return [self.answer(question) for question in questions]

    def answer(self, question):
        if question.history.count("Answer:") > self.max_items:
            return Reject(question.record.id, "scenario", "overlong", "")
        return frozenset({0})


def ask_with_history(questions, answer, *, examples=TRAIN, num_examples=3, seed=0, style=STYLE, shown=None):
    return by_history(
        questions,
        answer=answer,
        style=style,
        space=SPACE,
        examples=examples,
        num_examples=num_examples,
        seed=seed,
        shown=Counter() if shown is None else shown,
    )


def history(question: Question, **settings) -> str:
    answerer = RecordingAnswerer()
    ask_with_history([question], answerer, **settings)
    return answerer.questions[-1].history


def shown_in(text: str) -> list[int]:
    """Return the numbers of the training records in a history, in order."""
    return [r for line in text.split("\n") if line.startswith("The town has plan") for r in [int(line.split()[4])]]


@pytest.mark.parametrize("form", ["one", "all"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_history_is_rendered_items_with_the_answers_of_the_pole(form, side) -> None:
    text = history(Question(ITEM, form, side))
    numbers = shown_in(text)
    assert len(set(numbers)) == 3
    want = ""
    for number in numbers:
        example = record(number)
        want += render_prompt(example, side=None, form=form, style=STYLE, space=SPACE).text
        want += render_answer(example, target_options(example, side=side, form=form), form=form, style=STYLE) + "\n\n"
    assert text == want
    assert "Preference" not in text


def test_both_poles_get_the_same_items_and_a_question_without_a_pole_gets_none() -> None:
    first, second = (shown_in(history(Question(ITEM, "one", side))) for side in (0, 1))
    assert first == second
    answerer = RecordingAnswerer()
    ask_with_history([Question(ITEM, "one", None)], answerer)
    assert answerer.questions == [Question(ITEM, "one", None)]


def test_the_question_itself_states_no_condition() -> None:
    answerer = RecordingAnswerer()
    ask_with_history([Question(ITEM, "one", 0), Question(ITEM, "one", 1)], answerer)
    assert [(q.record, q.form, q.side) for q in answerer.questions] == [(ITEM, "one", None)] * 2


def test_the_drawn_items_depend_only_on_item_and_seed() -> None:
    question = Question(ITEM, "one", 0)
    once = history(question)
    assert history(question, examples=TRAIN[::-1]) == once
    answerer = RecordingAnswerer()
    ask_with_history([Question(record(2), "one", 0), question], answerer)
    assert answerer.questions[1].history == once
    assert history(question, seed=1) != once
    assert answerer.questions[0].history != once


def test_items_have_the_questions_axis_and_different_scenarios() -> None:
    again = [record(number, num_options=4) for number in (1, 20, 21)]  # other options for known scenarios
    for number in (1, 20, 21, 22):
        text = history(Question(record(number), "one", 0), examples=[*TRAIN, *again], num_examples=9)
        numbers = shown_in(text)
        assert len(set(numbers)) == 9
        assert number not in numbers
    paces = shown_in(history(Question(record(1, axis="Pace"), "one", 0), examples=[record(20), *TRAIN[1:6:2]]))
    assert sorted(paces) == [20, 21, 22]  # TRAIN[1], [3] and [5]


def test_too_few_items_raise_an_error_with_the_numbers() -> None:
    # Pace has 10 training records, one of which has the question's own scenario.
    with pytest.raises(UserError, match=r"num_examples=10: axis 'Pace' has only 9 training records"):
        ask_with_history([Question(record(20, axis="Pace"), "one", 0)], RecordingAnswerer(), num_examples=10)
    with pytest.raises(UserError, match="has only 0 training records"):
        ask_with_history([Question(ITEM, "one", 0)], RecordingAnswerer(), examples=[])


def test_the_oldest_items_are_dropped_until_the_prompt_fits_and_counted() -> None:
    shown: Counter[int] = Counter()
    answerer = RecordingAnswerer(max_items=2)
    questions = [Question(ITEM, "one", 0), Question(ITEM, "one", None)]
    assert ask_with_history(questions, answerer, num_examples=4, shown=shown) == [{0}, {0}]
    whole, cut = answerer.questions[1].history, answerer.questions[-1].history
    assert shown_in(cut) == shown_in(whole)[-2:]
    assert +shown == {2: 1}  # a question without a condition has no history to count


def test_a_question_that_does_not_fit_with_a_single_item_is_rejected() -> None:
    shown: Counter[int] = Counter()
    answerer = RecordingAnswerer(max_items=0)
    (answer,) = ask_with_history([Question(ITEM, "one", 0)], answerer, shown=shown)
    assert answer.reason == "overlong"
    assert [len(shown_in(q.history)) for q in answerer.questions] == [3, 2, 1]
    assert not +shown


def test_the_scenario_span_is_that_of_the_question(tiny_qwen2, monkeypatch) -> None:
    seen = []

    def recording_tokenize(texts, prompt_lengths, spans, tokenizer):
        seen.extend(text[slice(*span)] for text, span in zip(texts, spans, strict=True))
        return tokenize(texts, prompt_lengths, spans, tokenizer)

    monkeypatch.setattr("pft_core.evaluation.answers.tokenize", recording_tokenize)
    settings = AnswerSettings(STYLE, SPACE, max_length=1024, tokens_per_batch=4096, max_new_tokens=1)
    question = Question(ITEM, "one", None, history="Something before.\n\n")
    encode_options([question], tokenizer=AutoTokenizer.from_pretrained(tiny_qwen2), settings=settings)
    assert seen == [ITEM.scenario] * len(ITEM.options)


def test_in_a_chat_the_history_is_inside_the_users_message(tiny_qwen2) -> None:
    style = PromptStyle(frame=Frame("<user>", "</user><reply>", answer_lead=""))
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2)
    answerer = RecordingAnswerer()
    ask_with_history([Question(ITEM, "one", 0)], answerer, style=style, num_examples=1)
    (question,) = answerer.questions
    settings = AnswerSettings(style, SPACE, max_length=1024, tokens_per_batch=4096, max_new_tokens=1)
    (example,) = encode_options([question], tokenizer=tokenizer, settings=settings)
    text = tokenizer.decode(example.prefix_ids)
    bare = render_prompt(ITEM, side=None, form="one", style=style, space=SPACE).text
    assert text == f"<user>{question.history}{bare.removeprefix('<user>')}"
    assert "\nAnswer: {" in question.history  # inside the message, items have the plain frame
    assert text.count("<user>") == text.count("</user><reply>") == 1


def test_by_likelihood_and_by_generation_end_to_end(tiny_qwen2) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2)
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen2).eval()
    settings = AnswerSettings(STYLE, SPACE, max_length=1000, tokens_per_batch=4096, max_new_tokens=2)
    long = paired_example("Risk", "town " * 800, ITEM.options)  # fits alone, but not after an item
    items = [(ITEM, "one"), (record(2), "all"), (long, "one")]
    likely = partial(by_likelihood, scorer=BranchScorer(model), tokenizer=tokenizer, settings=settings)
    shown: Counter[int] = Counter()
    outcomes = ask(items, partial(ask_with_history, answer=likely, shown=shown), None)
    assert [isinstance(o, Outcome) for o in outcomes] == [True, True, False]
    assert outcomes[2].reason == "overlong"
    assert sum(shown.values()) == 4
    generated = partial(by_generation, model=model, tokenizer=tokenizer, settings=settings)
    assert len(ask(items[:2], partial(ask_with_history, answer=generated), None)) == 2
