"""The embedded data set (balanced, with disjoint splits, decided by a seed) and its base model."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pft_core.data.preferences import SIDES, load_space
from pft_core.data.records import PairedExample
from pft_core.data.sources.toyworld import Split, generate
from pft_core.data.sources.toyworld_words import MANNERS
from pft_core.errors import UserError
from pft_core.evaluation.answers import AnswerSettings, Question, by_likelihood
from pft_core.prompts.rendering import PromptStyle, render_answer, render_prompt
from pft_core.scoring.scorer import BranchScorer
from pft_core.toyworld import base
from pft_core.toyworld.base import new_model
from pft_core.toyworld.shipped import SHIPPED_BASE
from pft_core.toyworld.tokenizer import make_tokenizer

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SPACE = load_space("toyworld")


def _items(split: Split, *, seed: int = 0, num_per_axis: int = 300) -> list[PairedExample]:
    return list(generate(seed=seed, split=split, num_per_axis=num_per_axis))


def _per_axis(items: list[PairedExample]) -> dict[str, list[PairedExample]]:
    return {axis.name: [item for item in items if item.axis == axis.name] for axis in SPACE.axes}


def test_each_axis_gets_the_requested_number_of_distinct_items() -> None:
    items = _items("test")
    assert Counter(item.axis for item in items) == {"Risk": 300, "Pace": 300, "Candour": 300}
    assert len({item.id for item in items}) == 900


def test_splits_share_no_scenario_and_no_option_phrase_even_across_seeds() -> None:
    scenarios: list[set[str]] = []
    phrases: list[set[str]] = []
    for seed, split in enumerate(SPLITS):
        items = _items(split, seed=seed, num_per_axis=1000)
        scenarios.append({item.scenario for item in items})
        phrases.append({option.text for item in items for option in item.options})
    for train, validation, test in (scenarios, phrases):
        assert not train & test
        assert not train & validation
        assert not validation & test


def test_every_split_uses_every_manner() -> None:
    manners = {manner for axis in SPACE.axes for words in MANNERS[axis.name] for manner in words}
    for split in SPLITS:
        assert {option.text.split()[0] for item in _items(split) for option in item.options} == manners


def test_every_position_holds_the_first_pole_exactly_half_of_the_time() -> None:
    for items in _per_axis(_items("test")).values():
        for position in range(5):
            sides = [item.options[position].side for item in items if position < len(item.options)]
            assert sides.count(0) == sides.count(1) > 0


def test_a_policy_that_only_knows_positions_scores_exactly_one_half() -> None:
    for items in _per_axis(_items("test")).values():
        for side in SIDES:  # option 1 for the first pole, option 2 for the second
            assert sum(item.options[side].side == side for item in items) == len(items) / 2


def test_items_have_two_to_five_options_of_both_poles() -> None:
    items = _items("train")
    # 300 items per axis are 150 mirrored twos over 4 numbers of options: 38, 38, 37, 37 twos.
    assert Counter(len(item.options) for item in items) == {2: 228, 3: 228, 4: 222, 5: 222}
    assert all({option.side for option in item.options} == {0, 1} for item in items)


def test_options_of_an_item_differ_and_begin_with_a_manner_of_their_pole() -> None:
    for item in _items("train"):
        assert len({option.text.split()[0] for option in item.options}) == len(item.options)
        assert all(option.text.split()[0] in MANNERS[item.axis][option.side] for option in item.options)


def test_a_manner_belongs_to_one_pole_of_one_axis() -> None:
    manners = [manner for poles in MANNERS.values() for words in poles for manner in words]
    assert len(manners) == len(set(manners))


def test_the_base_model_shares_no_axis_with_the_demo() -> None:
    demo, other = ({axis.name for axis in load_space(name).axes} for name in ("toyworld", "toyworld-base"))
    assert demo | other == set(MANNERS)
    assert not demo & other


def test_a_seed_gives_the_same_items_and_another_seed_others() -> None:
    assert _items("train") == _items("train")
    same = {item.id for item in _items("train")} & {item.id for item in _items("train", seed=1)}
    assert not same


def test_more_items_than_a_split_has_scenarios_is_refused_with_the_number() -> None:
    with pytest.raises(UserError, match=r"num_per_axis=5000: .* 1440 scenarios"):
        _items("validation", num_per_axis=5000)


def test_a_toyworld_item_is_few_tokens_and_each_word_is_one() -> None:
    tokenizer = make_tokenizer(SPACE, load_space("toyworld-base"))
    for item in _items("test", num_per_axis=50):
        prompt = render_prompt(item, side=0, form="one", style=PromptStyle(answer="option"), space=SPACE).text
        answer = render_answer(item, (0,), form="one", style=PromptStyle(answer="option"))
        assert len(tokenizer(answer).input_ids) == 4
        assert len(tokenizer(prompt + answer).input_ids) < 80


def test_the_tokenizer_survives_saving_and_encodes_any_text(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = make_tokenizer(SPACE)
    made.save_pretrained(tmp_path)
    new_model(len(made), eos=made.eos_token_id, pad=made.pad_token_id).config.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.is_fast
    assert (loaded.pad_token, loaded.eos_token) == ("<pad>", "<eos>")
    for text in (" boldly sell the boat\nkindly keep it", "Zebra 42 na\u00efve \u4f60"):
        ids = loaded(text).input_ids
        assert ids == made(text).input_ids
        assert loaded.decode(ids) == text


def test_the_shipped_base_model_has_the_tokenizer_that_the_code_makes(tmp_path: Path) -> None:
    # A change of words, prompts or wording needs a new base model: python -m pft_core.toyworld.base FOLDER
    make_tokenizer(SPACE, load_space("toyworld-base")).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == (SHIPPED_BASE / "tokenizer.json").read_text()


def test_making_a_base_model_twice_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_NUM_PER_AXIS", 16)  # 4 steps run the whole path, without quality
    state = torch.get_rng_state()
    for name in "ab":
        base.make_base(tmp_path / name, seed=0)
    one, two = (tmp_path / name / "model.safetensors" for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_the_shipped_base_model_is_what_the_script_makes(tmp_path: Path) -> None:
    base.make_base(tmp_path, seed=base.SHIPPED_SEED)
    made, shipped = (load_file(folder / "model.safetensors") for folder in (tmp_path, SHIPPED_BASE))
    assert made.keys() == shipped.keys()
    # Other processors round differently, and 180 steps of AdamW amplify that: weights agree in direction, not bitwise.
    for name, weight in made.items():
        assert torch.cosine_similarity(weight.flatten(), shipped[name].flatten(), dim=0) > 0.95, name


@pytest.mark.parametrize("seed", [0, 1])
def test_the_shipped_base_model_chooses_on_its_own_axes_and_by_position_on_the_demo_axes(seed: int) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = SHIPPED_BASE
    scorer = BranchScorer(AutoModelForCausalLM.from_pretrained(folder).eval())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = load_space("toyworld-base")
    settings = AnswerSettings(
        PromptStyle(answer="option"), own, max_length=256, tokens_per_batch=8192, max_new_tokens=1
    )
    for space, low, high in ((own, 0.95, 1.0), (SPACE, 0.4, 0.6)):
        items = list(generate(seed=seed, split="test", num_per_axis=64, space=space))
        questions = [Question(item, "one", side) for item in items for side in SIDES]
        space_settings = replace(settings, space=space)
        right: dict[tuple[str, int | None], list[bool]] = {}
        answers = by_likelihood(questions, scorer=scorer, tokenizer=tokenizer, settings=space_settings)
        for question, answer in zip(questions, answers, strict=True):
            assert isinstance(answer, frozenset)
            gold = question.record.of_side(question.side or 0)
            right.setdefault((question.record.axis, question.side), []).append(answer <= set(gold))
        assert all(low <= sum(hits) / len(hits) <= high for hits in right.values()), right
