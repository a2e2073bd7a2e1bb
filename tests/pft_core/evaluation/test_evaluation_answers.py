import itertools
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pft_core.data.records import Option, Reject, paired_example
from pft_core.evaluation.answers import (
    AnswerSettings,
    Question,
    ask,
    by_generation,
    by_likelihood,
    candidates,
    encode_options,
    generate,
    read_reply,
    score_branches,
    write_greedily,
)
from pft_core.evaluation.metrics.outcome import Outcome
from pft_core.policies.model import load_policy
from pft_core.prompts.rendering import PromptStyle, render_answer, render_prompt
from pft_core.scoring.scorer import BranchScorer
from tests.builders import SPACE, record

LETTER, OPTION = PromptStyle(answer="letter"), PromptStyle(answer="option")
LETTER_AFTER, OPTION_AFTER = (PromptStyle("after", style.answer) for style in (LETTER, OPTION))
UNEQUAL = [Option("go far away", 0), Option("stay", 1)]
FREE = paired_example("Risk", "A town .", UNEQUAL, "response")
RECORDS = [
    *(record(number, num_options=2 + number) for number in range(4)),
    paired_example("Risk", "A town .", UNEQUAL),
]
QUESTIONS = [Question(r, form, side) for r in RECORDS for form in ("one", "all") for side in (0, 1)]


@pytest.fixture(scope="module")
def tokenizer(tiny_qwen2):
    return AutoTokenizer.from_pretrained(tiny_qwen2)


@pytest.fixture(scope="module")
def model(tiny_qwen2):
    return AutoModelForCausalLM.from_pretrained(tiny_qwen2).eval()


def settings(style=LETTER, **limits) -> AnswerSettings:
    return AnswerSettings(style, SPACE, **{"max_length": 512, "tokens_per_batch": 4096, "max_new_tokens": 8, **limits})


def texts_of(question, style):
    prompt = render_prompt(question.record, side=question.side, form=question.form, style=style, space=SPACE).text
    return prompt, [render_answer(question.record, c, form=question.form, style=style) for c in candidates(question)]


def test_candidates_are_options_or_non_empty_subsets() -> None:
    assert candidates(Question(record(num_options=3), "one", 0)) == [(0,), (1,), (2,)]
    subsets = candidates(Question(record(num_options=3), "all", 0))
    assert subsets == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    assert len(candidates(Question(record(num_options=5), "all", 0))) == 31


@pytest.mark.parametrize("style", [LETTER, OPTION])
def test_a_candidates_labels_are_its_answer_and_its_prefix_is_the_prompt(tokenizer, style) -> None:
    for question, example in zip(
        QUESTIONS, encode_options(QUESTIONS, tokenizer=tokenizer, settings=settings(style)), strict=True
    ):
        prompt, answers = texts_of(question, style)
        assert example.prefix_ids.tolist() == tokenizer(prompt)["input_ids"]
        for index, (branch, answer) in enumerate(zip(example.branches, answers, strict=True)):
            assert branch.side == index
            assert branch.label_mask.all()
            assert branch.input_ids.tolist() == [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize("style", [LETTER, OPTION, LETTER_AFTER, OPTION_AFTER])
def test_likelihood_chooses_the_answer_that_a_plain_forward_prefers(tokenizer, model, style) -> None:
    answer = partial(by_likelihood, scorer=BranchScorer(model), tokenizer=tokenizer)
    for question, chosen in zip(QUESTIONS, answer(QUESTIONS, settings=settings(style)), strict=True):
        prompt, answers = texts_of(question, style)
        # Letters: the sum over the answer. Options: the mean per label token.
        scores = [plain_score(model, tokenizer, prompt, text, mean=style.answer == "option") for text in answers]
        assert chosen == frozenset(candidates(question)[scores.index(max(scores))])


def plain_score(model, tokenizer, prompt: str, answer: str, *, mean: bool) -> float:
    prompt_ids = tokenizer(prompt)["input_ids"]
    answer_ids = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logps = model(torch.tensor([prompt_ids + answer_ids])).logits[0].log_softmax(-1)
    total = sum(float(logps[len(prompt_ids) - 1 + i, token]) for i, token in enumerate(answer_ids))
    return total / len(answer_ids) if mean else total


def test_free_responses_are_scored_per_token_in_every_style(tokenizer, model) -> None:
    questions = [Question(FREE, "one", side) for side in (0, 1, None)]
    chosen = by_likelihood(questions, scorer=BranchScorer(model), tokenizer=tokenizer, settings=settings(LETTER))
    for question, choice in zip(questions, chosen, strict=True):
        prompt, answers = texts_of(question, LETTER)
        scores = [plain_score(model, tokenizer, prompt, text, mean=True) for text in answers]
        assert choice == {scores.index(max(scores))}


@pytest.mark.parametrize("style", [LETTER, OPTION_AFTER])
@pytest.mark.parametrize("tokens_per_batch", [1, 700, 100_000])
def test_scores_do_not_depend_on_batching(tokenizer, model, style, tokens_per_batch) -> None:
    examples = encode_options(QUESTIONS, tokenizer=tokenizer, settings=settings(style))
    scorer = BranchScorer(model)
    alone = [score_branches([example], scorer=scorer, tokens_per_batch=4096)[0] for example in examples]
    batched = score_branches(examples, scorer=scorer, tokens_per_batch=tokens_per_batch)
    for one, many in zip(alone, batched, strict=True):
        assert many.tolist() == pytest.approx(one.tolist(), abs=1e-4)  # float32: padding changes the order of sums


@pytest.mark.parametrize(("style", "copies"), [(OPTION, 3), (OPTION_AFTER, 1)])
def test_a_scenario_before_the_conditions_runs_once_for_all_of_them(tokenizer, model, style, copies) -> None:
    scenario = "The town has plan 1 . What now ? " * 10
    records = [paired_example("Risk", f"{scenario}{name} .", UNEQUAL) for name in ("One", "Two")]
    questions = [Question(r, "one", side) for r in records for side in (0, 1, None)]
    examples = encode_options(questions, tokenizer=tokenizer, settings=settings(style))
    scorer, batches = BranchScorer(model), []
    scorer.register_forward_pre_hook(lambda _, arguments: batches.append(arguments[0]))
    budget = sum(example.num_tokens for example in examples) // 2
    score_branches(examples, scorer=scorer, tokens_per_batch=budget)
    ran = torch.cat([ids for b in batches for ids in (b.prefix_ids, b.stem_ids, b.branch_ids)])
    assert ran.tolist().count(tokenizer(" plan")["input_ids"][-1]) == 10 * copies * len(records)
    assert len(batches) == copies  # half the tokens of lone questions hold both joined records, or two lone questions


def fixed(answers: dict):
    """Return an answerer that always gives the option of the question's side."""
    return lambda questions: [frozenset({answers[q.side]}) for q in questions]


def test_items_become_outcomes_and_the_base_answers_without_a_condition() -> None:
    items = [(record(1), "one"), (record(2), "all")]
    base_questions = []

    def base(questions):
        base_questions.extend(questions)
        return [frozenset({2}) for _ in questions]

    one, every = ask(items, fixed({0: 0, 1: 1, None: 2}), base)
    sides = tuple(option.side for option in record(1).options)
    assert (one.item_id, one.axis, one.form, one.sides) == (record(1).id, "Risk", "one", sides)
    assert one.chosen == ({0}, {1})
    assert (one.unconditioned, one.base_unconditioned) == ({2}, {2})
    assert (every.chosen, every.unconditioned, every.base_unconditioned) == (({0}, {1}), None, None)
    assert base_questions == [Question(record(1), "one", None)]


def test_a_policy_without_training_is_its_own_base() -> None:
    (outcome,) = ask([(record(1), "one")], fixed({0: 0, 1: 0, None: 1}), None)
    assert outcome.base_unconditioned == outcome.unconditioned == {1}


def test_items_of_one_scenario_are_one_cluster() -> None:
    items = [(record(1), "one"), (record(1, num_options=4), "one"), (record(2), "one")]
    first, again, other = ask(items, fixed({0: 0, 1: 0, None: 0}), None)
    assert first.item_id != again.item_id
    assert first.scenario == again.scenario != other.scenario


def test_every_item_comes_back_as_an_outcome_or_a_reject(tokenizer, model) -> None:
    long = paired_example("Risk", "town " * 600, record().options)
    items = [(record(1), "one"), (long, "one"), (record(2, num_options=6), "all"), (FREE, "all"), (record(3), "all")]
    answer = partial(by_likelihood, scorer=BranchScorer(model), tokenizer=tokenizer, settings=settings())
    outcomes = ask(items, answer, None)
    assert [o.reason if isinstance(o, Reject) else "" for o in outcomes] == [
        "", "overlong", "too_many_subsets", "no_listed_options", "",
    ]  # fmt: skip
    assert outcomes[1].row == f"{long.id}:one"
    assert "max_length is 512" in outcomes[1].detail
    assert isinstance(outcomes[0], Outcome)


def test_generation_does_not_depend_on_left_padding(tokenizer, model) -> None:
    prompts = [tokenizer(text)["input_ids"] for text in ("The town has a boat .", "a", "Choose one option , friend")]
    arrays = [torch.tensor(ids).numpy() for ids in prompts]
    as_ids = SimpleNamespace(pad_token_id=0, eos_token_id=2, batch_decode=lambda ids, **_: ids.tolist())
    together = generate(arrays, model=model, tokenizer=as_ids, max_new_tokens=8)
    alone = [generate([ids], model=model, tokenizer=as_ids, max_new_tokens=8)[0] for ids in arrays]
    assert together == alone
    assert len({tuple(ids) for ids in together}) > 1


def test_generation_continues_the_training_prompt(tokenizer, monkeypatch) -> None:
    seen = {}

    def echo(prompts, **_):
        replies = [f'{{"choice": "{letter}"}}' for letter, _ in zip(itertools.cycle("AB"), prompts, strict=False)]
        seen.update(zip(replies, prompts, strict=False))
        return replies

    monkeypatch.setattr("pft_core.evaluation.answers.generate", echo)
    questions = [Question(record(1), "one", 0), Question(record(1), "one", None)]
    answers = by_generation(questions, model=None, tokenizer=tokenizer, settings=settings(max_length=1024))
    assert sorted(answers, key=sorted) == [{0}, {1}]
    for question, choice in zip(questions, answers, strict=True):
        prompt = seen['{"choice": "A"}' if choice == {0} else '{"choice": "B"}']
        assert prompt.tolist() == tokenizer(texts_of(question, LETTER)[0])["input_ids"]


def test_generation_rejects_unaskable_questions_and_leaves_noise_unparsed(tokenizer, model) -> None:
    questions = [Question(record(1), "one", 0), Question(FREE, "one", 0), Question(record(1), "one", 1)]
    tight = settings(max_length=8 + 60)
    first, free, last = by_generation(questions, model=model, tokenizer=tokenizer, settings=settings())
    assert (first, free.reason, last) == (None, "no_listed_options", None)  # random weights generate noise
    overlong = by_generation(questions[:1], model=model, tokenizer=tokenizer, settings=tight)[0]
    assert (overlong.reason, overlong.key_path) == ("overlong", "scenario")


@pytest.mark.parametrize(
    ("form", "style", "reply", "choice"),
    [
        ("one", LETTER, '{"choice": "B"}', {1}),
        ("all", LETTER, '{"choices": ["A", "C"]}', {0, 2}),
        ("one", LETTER, "{first}", None),
        ("one", OPTION, " {first}", {0}),
        ("all", OPTION, "{first}\n{last}", {0, 2}),
        ("all", OPTION, '{"choices": ["A"]}', None),
    ],
)
def test_a_reply_is_parsed_according_to_form_and_style(form, style, reply, choice) -> None:
    options = record().options
    reply = reply.replace("{first}", options[0].text).replace("{last}", options[2].text)
    assert read_reply(reply, Question(record(), form, 0), style) == choice


def test_a_reply_does_not_depend_on_longer_prompts_if_positions_follow_the_length(tokenizer, tmp_path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.3,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    load = partial(load_policy, str(tmp_path), None, None, precision="fp32", device=torch.device("cpu"))
    prompts = [np.array([3 + (i * n) % 500 for i in range(n)], dtype=np.int32) for n in (12, 40, 20, 3, 20)]
    write = partial(write_greedily, tokenizer=tokenizer, settings=replace(settings(), max_new_tokens=8))
    alone = [write([prompt], model=load())[0] for prompt in prompts]
    assert write(prompts, model=load()) == alone
