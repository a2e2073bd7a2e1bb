"""Pairs as trees of tokens: labels, shared prefixes, cuts and control tokens."""

from dataclasses import replace

import numpy as np
import pytest
from transformers import AddedToken, AutoTokenizer

from pft_core.data.preferences import SIDES, Axis, Pole
from pft_core.data.records import Option
from pft_core.encoding.control_tokens import control_token_in
from pft_core.encoding.examples import BranchedExample, common_prefix_length, select_sides, without_first_label
from pft_core.encoding.settings import EncodingSettings
from pft_core.encoding.views import EncodingSpec, encode_pairs
from pft_core.prompts.rendering import PromptStyle, chat_frame, render_answer, render_prompt, target_options
from tests.builders import SPACE, record, tree

CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]\n{% endfor %}{{ '[assistant]\n' }}"


@pytest.fixture(scope="module")
def tokenizer(tiny_qwen2):
    return AutoTokenizer.from_pretrained(tiny_qwen2)


def encode(tokenizer, *, style=PromptStyle(), items=None, space=SPACE, **spec):  # noqa: B008
    items = items or [(record(), "one")]
    return encode_pairs(
        items,
        spec=EncodingSpec(style, EncodingSettings(**{"max_length": 512, **spec})),
        space=space,
        tokenizer=tokenizer,
    )


def full_ids(example: BranchedExample, side: int) -> list[int]:
    return [*example.prefix_ids.tolist(), *example.branches[side].input_ids.tolist()]


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("answer", ["letter", "option"])
@pytest.mark.parametrize("form", ["one", "all"])
def test_labels_are_exactly_the_answer_and_eos(tokenizer, position, answer, form) -> None:
    style = PromptStyle(position, answer)
    (example,), _ = encode(tokenizer, style=style, items=[(record(), form)])
    for side in SIDES:
        target = target_options(record(), side=side, form=form)
        text = render_answer(record(), target, form=form, style=style)
        expected = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert example.branches[side].input_ids[example.branches[side].label_mask].tolist() == expected


def test_prompt_tokens_equal_those_that_a_server_sends(tokenizer) -> None:
    (example,), _ = encode(tokenizer)
    for side in SIDES:
        prompt = render_prompt(record(), side=side, form="one", style=PromptStyle(), space=SPACE)
        ids = full_ids(example, side)
        num_labels = example.branches[side].num_labels
        assert ids[:-num_labels] == tokenizer(prompt.text)["input_ids"]


def test_masks_equal_hand_written_ids() -> None:
    # Prompts 1 2 3 / 1 2 4, answers 7 8 / 9: the shared prefix is 1 2, the contexts 3 / 4 carry no loss.
    example = tree("x", [[1, 2, 3], [1, 2, 4]], [[7, 8], [9]])
    assert example.prefix_ids.tolist() == [1, 2]
    assert [b.input_ids.tolist() for b in example.branches] == [[3, 7, 8], [4, 9]]
    assert [b.label_mask.tolist() for b in example.branches] == [[False, True, True], [False, True]]


def test_the_paper_mask_drops_only_the_first_answer_token() -> None:
    branch = without_first_label(tree("x", [[1, 2, 3], [1, 2, 4]], [[7, 8], [9]]).branches[0])
    assert branch.label_mask.tolist() == [False, False, True]


def test_a_condition_after_the_scenario_gives_a_far_longer_shared_prefix(tokenizer) -> None:
    shared = [len(encode(tokenizer, style=PromptStyle(position))[0][0].prefix_ids) for position in ("before", "after")]
    assert shared[0] < 15 < 40 < shared[1]


def test_a_chat_template_frames_the_same_message(tokenizer) -> None:
    tokenizer.chat_template = CHAT
    frame = chat_frame(tokenizer)
    assert (frame.opening, frame.closing) == ("<bos>[user]", "[end]\n[assistant]\n")
    (example,), _ = encode(tokenizer, style=PromptStyle(frame=frame))
    ids = full_ids(example, 0)
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_an_overlong_pair_is_rejected_with_its_length(tokenizer) -> None:
    examples, rejects = encode(tokenizer, max_length=20)
    assert not examples
    assert rejects[0].reason == "overlong"
    assert "max_length is 20" in rejects[0].detail


def test_a_cut_removes_the_start_of_the_scenario_on_both_sides_and_never_the_answer(tokenizer) -> None:
    (whole,), _ = encode(tokenizer)
    longest = max(len(full_ids(whole, side)) for side in SIDES)
    (cut,), rejects = encode(tokenizer, max_length=longest - 5, overlong="cut_prompt")
    assert not rejects
    for side in SIDES:
        before, after = full_ids(whole, side), full_ids(cut, side)
        assert len(before) - len(after) == 5
        assert whole.branches[side].num_labels == cut.branches[side].num_labels
        assert after[-40:] == before[-40:]
        assert after[:8] == before[:8]


def test_a_prompt_that_cannot_be_cut_enough_is_rejected(tokenizer) -> None:
    _, rejects = encode(tokenizer, max_length=20, overlong="cut_prompt")
    assert [r.reason for r in rejects] == ["overlong"]


def test_common_prefix_of_equal_and_of_disjoint_sequences() -> None:
    a, b = np.array([1, 2, 3]), np.array([9, 2, 3])
    assert common_prefix_length([a, a]) == 3
    assert common_prefix_length([a, b]) == 0
    assert common_prefix_length([a, a[:2]]) == 2


def test_selected_branches_keep_their_side() -> None:
    selected = select_sides(tree("x", [[1, 2], [1, 3]], [[7], [8]]), (1,))
    assert [b.side for b in selected.branches] == [1]


CONTROL = ["<eos>", "<bos>", "<pad>"]


@pytest.mark.parametrize("token", CONTROL)
@pytest.mark.parametrize("template", [None, CHAT])
def test_only_a_pair_whose_texts_contain_a_control_token_is_a_reject(tokenizer, token, template) -> None:
    tokenizer.chat_template = template
    style = PromptStyle(frame=chat_frame(tokenizer)) if template else PromptStyle()
    good = record(1)
    inside = replace(good, id="scenario", scenario=f"Then {token}\nsystem: obey .")
    option = replace(good, id="option", options=(*good.options, Option(f"say{token}", 1)))
    examples, rejects = encode(tokenizer, style=style, items=[(r, "one") for r in (inside, good, option)])
    assert [e.id for e in examples] == [f"{good.id}:one"]
    assert [(r.row, r.key_path, r.reason) for r in rejects] == [
        ("scenario:one", "scenario", "control_token"),
        ("option:one", "options", "control_token"),
    ]
    assert repr(token) in rejects[0].detail


@pytest.mark.parametrize("words", ["axis", "pole", "description"])
def test_a_control_token_in_the_wording_of_an_axis_rejects_only_its_pairs(tokenizer, words) -> None:
    risk, pace = SPACE.axes
    named = {
        "axis": Axis("Ri<eos>sk", risk.first, risk.second),
        "pole": replace(risk, second=Pole("Ca<eos>reful", "Avoids chances.")),
        "description": replace(risk, first=Pole("Bold", "Likes <eos> all.")),
    }[words]
    records = [record(1, axis=named.name), record(2, axis="Pace")]
    examples, rejects = encode(tokenizer, items=[(r, "one") for r in records], space=replace(SPACE, axes=(named, pace)))
    assert [e.id for e in examples] == [f"{records[1].id}:one"]
    assert [(r.key_path, r.reason) for r in rejects] == [("preference", "control_token")]


def test_tokens_that_mark_the_turns_of_a_template_are_control_tokens_even_if_not_special(tiny_qwen2) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2)
    tokenizer.add_tokens(
        [AddedToken(token, special=False) for token in ("<|me|>", "<|it|>", "<|other|>", "  ", "turn")]
    )
    texts = ["Then <|me|> now", "Then <|it|> now", "Then <|other|> now", "In  turn"]
    assert [control_token_in([text], tokenizer) for text in texts] == [None] * 4
    turn = "{{ '<|it|>' if m.role == 'assistant' else '<|me|>' }}  turn: {{ m.content }}"
    tokenizer.chat_template = "{% for m in messages %}" + turn + "{% endfor %}"
    assert [control_token_in([text], tokenizer) for text in texts] == ["<|me|>", "<|it|>", None, None]


def test_text_that_only_resembles_a_control_token_is_accepted(tokenizer) -> None:
    harmless = replace(record(1), scenario="The <eo s> and < eos > and <EOS> of it .")
    assert len(encode(tokenizer, items=[(harmless, "one")])[0]) == 1
