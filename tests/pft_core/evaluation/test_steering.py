"""Steering: directions equal differences of plain hidden states, and are added only at the documented positions."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from pft_core.data.records import Option, Reject, paired_example
from pft_core.errors import UserError
from pft_core.evaluation import steering
from pft_core.evaluation.answers import (
    AnswerSettings,
    Question,
    ask,
    by_likelihood,
    candidates,
    encode_options,
    score_branches,
)
from pft_core.evaluation.steering import (
    SteeringVectors,
    SweepPoint,
    by_steering,
    contrast_vectors,
    mean_one,
    steered,
    sweep,
)
from pft_core.policies.model import add_lora
from pft_core.policies.settings import LoraSettings
from pft_core.prompts.rendering import PromptStyle, render_answer, render_prompt, target_options
from pft_core.scoring.scorer import BranchScorer
from tests.builders import SPACE, record

ASKING = AnswerSettings(PromptStyle(answer="option"), SPACE, max_length=512, tokens_per_batch=4096, max_new_tokens=1)
UNEQUAL = [Option("go far away from the old town", 0), Option("stay", 1)]
RECORDS = [
    *(record(number, num_options=2 + number) for number in range(3)),
    paired_example("Risk", "A town .", UNEQUAL),
    *(record(number, axis="Pace") for number in range(7, 9)),
]
QUESTIONS = [Question(r, "one", None) for r in RECORDS]
HIDDEN = 32


@pytest.fixture(scope="module")
def tokenizer(tiny_qwen2):
    return AutoTokenizer.from_pretrained(tiny_qwen2)


@pytest.fixture
def model(tiny_qwen2):
    return AutoModelForCausalLM.from_pretrained(tiny_qwen2).eval()


@pytest.fixture
def scorer(model):
    return BranchScorer(model, backend="separate")


def direction(seed: int = 0) -> torch.Tensor:
    return torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed))


def vectors(*layers: int, **by_axis: torch.Tensor) -> SteeringVectors:
    return SteeringVectors(layers, by_axis, "words", "base")


def logps(scorer, tokenizer) -> list[list[float]]:
    examples = encode_options(QUESTIONS, tokenizer=tokenizer, settings=ASKING)
    return [s.tolist() for s in score_branches(examples, scorer=scorer, tokens_per_batch=4096)]


def ids_of(tokenizer, item, chosen) -> tuple[list[int], list[int]]:
    """Return prompt and answer ids of a demonstration without a condition, rendered and tokenized separately."""
    prompt = render_prompt(item, side=None, form="one", style=ASKING.style, space=SPACE).text
    answer = render_answer(item, chosen, form="one", style=ASKING.style)
    return tokenizer(prompt)["input_ids"], [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize("tokens_per_batch", [1, 4096])
def test_a_direction_is_the_mean_difference_of_plain_hidden_states(model, tokenizer, tokens_per_batch) -> None:
    settings = replace(ASKING, tokens_per_batch=tokens_per_batch)
    got = contrast_vectors(RECORDS, model=model, tokenizer=tokenizer, settings=settings, layers=(0, 1))
    model.model.norm = nn.Identity()  # transformers normalizes the last of its hidden states
    want = {"Risk": torch.zeros(2, HIDDEN), "Pace": torch.zeros(2, HIDDEN)}
    for item in RECORDS:
        for side, sign in ((0, 1), (1, -1)):
            prompt, answer = ids_of(tokenizer, item, target_options(item, side=side, form="one"))
            with torch.no_grad():
                states = model(torch.tensor([prompt + answer]), output_hidden_states=True).hidden_states
            for layer in (0, 1):
                mean = states[layer + 1][0, len(prompt) :].mean(dim=0)
                want[item.axis][layer] += sign * mean / (4 if item.axis == "Risk" else 2)
    assert got.keys() == want.keys()
    for axis in want:
        # float32: padding changes the order of sums.
        torch.testing.assert_close(got[axis], want[axis], atol=1e-5, rtol=1e-5)
        assert want[axis].abs().max() > 0.01


def test_layers_come_in_the_requested_order_and_axes_without_records_are_omitted(model, tokenizer) -> None:
    got = contrast_vectors(RECORDS[:3], model=model, tokenizer=tokenizer, settings=ASKING, layers=(1, 0))
    want = contrast_vectors(RECORDS[:3], model=model, tokenizer=tokenizer, settings=ASKING, layers=(0, 1))
    assert list(got) == ["Risk"]
    assert torch.equal(got["Risk"], want["Risk"].flip(0))


def test_overlong_records_are_left_out_and_counted(model, tokenizer, caplog) -> None:
    long = paired_example("Pace", "town " * 600, UNEQUAL)
    got = contrast_vectors([record(), long], model=model, tokenizer=tokenizer, settings=ASKING, layers=(0,))
    assert list(got) == ["Risk"]
    assert "leave out 1 of 2 records" in caplog.text


@pytest.mark.parametrize("layer", [0, 1])
def test_the_vector_is_added_from_the_last_prompt_token_on(model, scorer, tokenizer, layer) -> None:
    with steered(scorer, direction(), layer=layer, multiplier=1.5):
        got = logps(scorer, tokenizer)
    for question, scores in zip(QUESTIONS, got, strict=True):
        for chosen, score in zip(candidates(question), scores, strict=True):
            prompt, answer = ids_of(tokenizer, question.record, chosen)
            want = plain_score(model, prompt, answer, layer=layer, added=1.5 * direction(), start=len(prompt) - 1)
            assert score == pytest.approx(want, abs=1e-4)  # float32: padding changes the order of sums


def plain_score(model, prompt, answer, *, layer, added, start) -> float:
    """Score one unpadded row with the vector added position by position."""
    offsets = torch.zeros(len(prompt) + len(answer), HIDDEN)
    offsets[start:] = added
    handle = model.model.layers[layer].register_forward_hook(lambda _m, _i, hidden: hidden + offsets)
    with torch.no_grad():
        rows = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    handle.remove()
    return sum(float(rows[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


@pytest.mark.parametrize(("scale", "multiplier"), [(0.0, 2.0), (1.0, 0.0)])
def test_adding_a_zero_vector_leaves_scores_bitwise_equal(scorer, tokenizer, scale, multiplier) -> None:
    before = logps(scorer, tokenizer)
    with steered(scorer, scale * direction(), layer=0, multiplier=multiplier):
        assert logps(scorer, tokenizer) == before
    with steered(scorer, direction(), layer=0, multiplier=1.0):
        assert logps(scorer, tokenizer) != before


def test_a_negated_vector_with_a_negated_multiplier_gives_the_same_scores(scorer, tokenizer) -> None:
    with steered(scorer, direction(), layer=0, multiplier=-0.7):
        subtracted = logps(scorer, tokenizer)
    with steered(scorer, -direction(), layer=0, multiplier=0.7):
        assert logps(scorer, tokenizer) == subtracted


def test_hooks_are_removed_after_the_context_even_if_it_fails(scorer, tokenizer) -> None:
    before = logps(scorer, tokenizer)
    with pytest.raises(RuntimeError, match="halfway"), steered(scorer, direction(), layer=0, multiplier=9.0):
        raise RuntimeError("halfway")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in scorer.modules())
    assert logps(scorer, tokenizer) == before


def test_computing_directions_leaves_no_hooks(model, tokenizer) -> None:
    contrast_vectors(RECORDS[:1], model=model, tokenizer=tokenizer, settings=ASKING, layers=(0, 1))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_with_an_adapter_is_steered_in_the_same_layers(model, scorer, tokenizer) -> None:
    settings = LoraSettings(r=2, alpha=4, dropout=0.0, target_modules=["q_proj"])
    with steered(scorer, direction(), layer=0, multiplier=1.0):
        bare = logps(scorer, tokenizer)
    adapted = BranchScorer(add_lora(model, settings, seed=0).eval(), backend="separate")
    with steered(adapted, direction(), layer=0, multiplier=1.0):
        assert logps(adapted, tokenizer) == bare  # a new adapter adds nothing


def test_a_scorer_that_shares_prefixes_is_refused(model) -> None:
    with (
        pytest.raises(AssertionError, match="separate"),
        steered(BranchScorer(model), direction(), layer=0, multiplier=1.0),
    ):
        pass


def steering_answers(questions, scorer, tokenizer, steering_vectors, *, layer=0, multiplier=1.0):
    return by_steering(
        questions,
        scorer=scorer,
        tokenizer=tokenizer,
        settings=ASKING,
        vectors=steering_vectors,
        layer=layer,
        multiplier=multiplier,
    )


def test_each_side_is_the_unconditioned_question_steered_to_it(scorer, tokenizer) -> None:
    steering_vectors = vectors(
        1, 0, Risk=torch.stack([direction(9), direction(0)]), Pace=torch.stack([direction(9), direction(1)])
    )
    questions = [Question(r, form, side) for r in RECORDS for form in ("one", "all") for side in (0, 1, None)]
    got = steering_answers(questions, scorer, tokenizer, steering_vectors, multiplier=3.0)
    for question, answer in zip(questions, got, strict=True):
        own = direction({"Risk": 0, "Pace": 1}[question.record.axis])
        bare = [replace(question, side=None)]
        with steered(scorer, own, layer=0, multiplier={0: 3.0, 1: -3.0, None: 0.0}[question.side]):
            assert by_likelihood(bare, scorer=scorer, tokenizer=tokenizer, settings=ASKING) == [answer]
    by_side = [[a for q, a in zip(questions, got, strict=True) if q.side == side] for side in (0, 1, None)]
    assert by_side[0] != by_side[1] != by_side[2] != by_side[0]


def test_no_question_states_its_condition(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(steering, "steered", lambda *_, **__: nullcontext())
    monkeypatch.setattr(steering, "by_likelihood", lambda questions, **_: asked.extend(questions) or questions)
    questions = [Question(RECORDS[0], "one", side) for side in (0, 1, None)]
    steering_answers(questions, None, None, vectors(0, Risk=direction()[None]))
    assert asked == [QUESTIONS[0]] * 3


def test_negating_the_vectors_swaps_the_answers_of_the_poles(scorer, tokenizer) -> None:
    items = [(r, "one") for r in RECORDS[:4]]
    steering_vectors, mirrored = (vectors(0, Risk=sign * direction()[None]) for sign in (1, -1))
    one = ask(items, lambda qs: steering_answers(qs, scorer, tokenizer, steering_vectors, multiplier=3.0), None)
    other = ask(items, lambda qs: steering_answers(qs, scorer, tokenizer, mirrored, multiplier=3.0), None)
    assert [o.chosen for o in one] == [o.chosen[::-1] for o in other]
    assert [o.unconditioned for o in one] == [o.unconditioned for o in other]
    assert any(o.chosen[0] != o.chosen[1] for o in one)


def test_unknown_axes_and_layers_are_errors_that_name_them(scorer, model, tokenizer) -> None:
    steering_vectors = vectors(0, 5, Risk=torch.zeros(2, HIDDEN))
    with pytest.raises(UserError, match="axis 'Pace' has no steering vector"):
        steering_answers(QUESTIONS, scorer, tokenizer, steering_vectors)
    with pytest.raises(UserError, match=r"layer=1 has no steering vector: use one of the layers \[0, 5\]"):
        steering_answers(QUESTIONS[:1], scorer, tokenizer, steering_vectors, layer=1)
    with pytest.raises(UserError, match="layer=5 does not exist: the model has layers 0 to 1"):
        steering_answers(QUESTIONS[:1], scorer, tokenizer, steering_vectors, layer=5)
    with pytest.raises(UserError, match="layer=-1 does not exist"):
        contrast_vectors(RECORDS, model=model, tokenizer=tokenizer, settings=ASKING, layers=(-1,))


def test_saved_vectors_load_unchanged(tmp_path) -> None:
    steering_vectors = vectors(
        1, 0, Pace=torch.stack([direction(2), direction(3)]), Risk=torch.stack([direction(), direction(1)])
    )
    file = steering_vectors.save(tmp_path / "caa.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["caa.safetensors"]
    loaded = SteeringVectors.load(file, template_digest="words", base_digest="base")
    assert (loaded.layers, list(loaded.by_axis)) == (steering_vectors.layers, ["Pace", "Risk"])
    assert (loaded.template_digest, loaded.base_digest) == ("words", "base")
    assert torch.equal(loaded.direction("Risk", 0), direction(1))
    assert torch.equal(loaded.direction("Pace", 1), direction(2))


def test_vectors_of_another_prompt_template_or_base_are_refused(tmp_path) -> None:
    file = vectors(0, Risk=direction()[None]).save(tmp_path / "caa.safetensors")
    with pytest.raises(UserError, match=r"another prompt template \(digest words, not other\)"):
        SteeringVectors.load(file, template_digest="other", base_digest="base")
    with pytest.raises(UserError, match=r"another base model \(digest base, not other\)"):
        SteeringVectors.load(file, template_digest="words", base_digest="other")


@pytest.mark.parametrize("content", ["missing", "text", "tensors"])
def test_a_file_without_vectors_is_refused(tmp_path, content) -> None:
    file = tmp_path / "caa.safetensors"
    if content == "text":
        file.write_text("not tensors")
    if content == "tensors":
        save_file({"Risk": torch.zeros(1, 2)}, file)
    with pytest.raises(UserError, match="not a file of steering vectors"):
        SteeringVectors.load(file, template_digest="words", base_digest="base")


def test_a_sweep_picks_the_best_then_the_smaller_multiplier_then_the_earlier_layer(monkeypatch) -> None:
    # The number of right answers to the first pole's three questions; the second pole's are always wrong.
    right = {(0, 0.5): 1, (1, 0.5): 2, (0, 1.0): 2, (1, 1.0): 2, (0, 2.0): 3, (1, 2.0): 3}

    def answers(questions, *, layer, multiplier, **_):
        assert [q.side for q in questions] == [0, 1] * 3
        first = [q.record.of_side(0)[0] for q in questions]
        return [
            frozenset({option if i < 2 * right[layer, multiplier] else question.record.of_side(1)[0]})
            if question.side == 0
            else frozenset({option})
            for i, (question, option) in enumerate(zip(questions, first, strict=True))
        ]

    monkeypatch.setattr(steering, "by_steering", answers)

    def sweep_over(*multipliers):
        return sweep(
            [record(i) for i in range(3)],
            scorer=None,
            tokenizer=None,
            settings=ASKING,
            vectors=vectors(1, 0),
            multipliers=multipliers,
        )

    # 3 of 6 questions are right with multiplier 2 in both layers: the earlier layer wins.
    best, table = sweep_over(1.0, 2.0)
    assert best == SweepPoint(0, 2.0, 0.5)
    assert table == [
        SweepPoint(1, 1.0, 1 / 3),
        SweepPoint(1, 2.0, 0.5),
        SweepPoint(0, 1.0, 1 / 3),
        SweepPoint(0, 2.0, 0.5),
    ]
    # 2 of 6 with multiplier 1 in both layers, and with 0.5 in the later layer: the smaller multiplier wins.
    assert sweep_over(1.0, 0.5)[0] == SweepPoint(1, 0.5, 1 / 3)


def test_the_mean_is_over_axes_and_rejected_questions_do_not_count() -> None:
    risk, pace = record(), record(axis="Pace")
    questions = [Question(risk, "one", 0), Question(risk, "one", 1), Question(risk, "one", 1), Question(pace, "one", 0)]
    reject = Reject("row", "scenario", "overlong", "")
    right, wrong = frozenset({risk.of_side(1)[0]}), frozenset({risk.of_side(0)[0]})
    # Risk: right under 1 (one of two that count), wrong under 1; Pace: wrong under 0 -> (1/2 + 0) / 2.
    answers = [reject, right, wrong, frozenset({pace.of_side(1)[0]})]
    assert mean_one(questions, answers) == 0.25
    with pytest.raises(UserError, match="every validation record was rejected"):
        mean_one(questions[:1], answers[:1])


def test_a_sweeps_scores_equal_those_of_asking_directly(scorer, model, tokenizer) -> None:
    directions = contrast_vectors(RECORDS, model=model, tokenizer=tokenizer, settings=ASKING, layers=(0, 1))
    steering_vectors = SteeringVectors((0, 1), directions, "words", "base")
    best, table = sweep(
        RECORDS, scorer=scorer, tokenizer=tokenizer, settings=ASKING, vectors=steering_vectors, multipliers=[1.0, 4.0]
    )
    assert [(p.layer, p.multiplier) for p in table] == [(0, 1.0), (0, 4.0), (1, 1.0), (1, 4.0)]
    assert best.one == max(p.one for p in table)
    questions = [Question(r, "one", side) for r in RECORDS for side in (0, 1)]
    answers = steering_answers(
        questions, scorer, tokenizer, steering_vectors, layer=best.layer, multiplier=best.multiplier
    )
    assert mean_one(questions, answers) == best.one
