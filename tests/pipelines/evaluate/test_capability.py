"""General capability: two-choice files, answers, the drop, and lm-eval if it is installed."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pft_core.data.records import Reject
from pft_core.errors import UserError
from pft_core.evaluation.answers import AnswerSettings
from pft_core.evaluation.tasks import capability
from pft_core.evaluation.tasks.capability import (
    CapabilityAnswer,
    CapabilityItem,
    ask_items,
    drop,
    encode_items,
    position_baseline,
    read_items,
)
from pft_core.policies.model import add_lora, load_base, save_adapter, trained_shapes
from pft_core.policies.model_ref import ModelRef
from pft_core.policies.settings import LoraSettings
from pft_core.prompts.rendering import Frame, PromptStyle
from pft_core.scoring.scorer import BranchScorer
from pipelines.evaluate.answering_job import AnsweringJob
from pipelines.evaluate.capability_answers import ask_capability, ask_lm_eval
from tests.builders import SPACE

CHAT = PromptStyle(frame=Frame("<bos>user: ", "\nassistant: ", answer_lead=""))
TEMPLATE = "<bos>user: {{ messages[0].content }}\n{% if add_generation_prompt %}assistant: {% endif %}"
WORDS = ["boat", "river", "plan", "job", "town", "friend", "market", "week", "money", "garden", "teacher", "letter"]


def row(number: int, **changes) -> dict:
    first, second = WORDS[number % 12], WORDS[(5 * number + 1) % 12]
    letters = ("(A)", "(B)") if number % 3 else ("(B)", "(A)")
    prompt = f"Question {number} of the {first} ?\n\nChoices:\n(A) {first}\n(B) {second}"
    return {"prompt": prompt, "correct": letters[0], "incorrect": letters[1], "category": first, **changes}


def write(path: Path, rows: list) -> Path:
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows) if lines else json.dumps(rows, indent=1))
    return path


def answered(*scores: float, seed: str = "item") -> list[CapabilityAnswer]:
    return [CapabilityAnswer(f"{seed}-{n}", None, score, n % 4 == 0) for n, score in enumerate(scores)]


def settings(style: PromptStyle = PromptStyle(), **limits) -> AnswerSettings:  # noqa: B008
    return AnswerSettings(style, SPACE, **{"max_length": 512, "tokens_per_batch": 2048, "max_new_tokens": 1, **limits})


def job(base: Path, *, adapter: Path | None = None, **limits) -> AnsweringJob:
    how = settings(**limits)
    ref = ModelRef(str(base), adapter and str(adapter), None, how.style, SPACE, (), "", "", "", None)
    return AnsweringJob(ref, how, generate=False, precision="fp32", use_gpu=False, num_threads=1)


@pytest.fixture(scope="module")
def tokenizer(tiny_qwen2):
    return AutoTokenizer.from_pretrained(tiny_qwen2)


@pytest.fixture(scope="module")
def adapter(tiny_qwen2, tmp_path_factory) -> Path:
    """Make a LoRA adapter that changes the model strongly."""
    base = load_base(str(tiny_qwen2), precision="fp32", gradient_checkpointing=False, device=torch.device("cpu"))
    model = add_lora(base, LoraSettings(r=4, alpha=8, dropout=0.0, target_modules="all-linear"), seed=1)
    names = trained_shapes(model)
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.randn(shape, generator=generator) for name, shape in names.items()}
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(model, state, folder)
    return folder


@pytest.mark.parametrize("name", ["items.json", "items.jsonl"])
def test_a_two_choice_file_becomes_items(tmp_path, name) -> None:
    items = read_items(write(tmp_path / name, [row(0), row(1, category=None)]))
    assert [(i.prompt, i.correct, i.incorrect, i.category) for i in items] == [
        (row(0)["prompt"], "(B)", "(A)", "boat"),
        (row(1)["prompt"], "(A)", "(B)", None),
    ]
    assert len({i.id for i in items}) == 2
    question = row(1) | {"question": row(1)["prompt"], "correct_full_text": "river", "source": "a book", "margin": 0.5}
    del question["prompt"]
    assert read_items(write(tmp_path / "question.json", [question]))[0].id == items[1].id
    # The id comes from the question, not from its place.
    assert read_items(write(tmp_path / "again.json", [row(1)]))[0].id == items[1].id


@pytest.mark.parametrize(
    ("bad", "key_path", "reason"),
    [
        ([1], "", "wrong_type"),
        ({"correct": "(A)", "incorrect": "(B)"}, "prompt", "missing_key"),
        (row(0, prompt="  "), "prompt", "empty_text"),
        (row(0, correct="A"), "correct", "not_a_letter"),
        (row(0, incorrect=2), "incorrect", "wrong_type"),
        (row(0, incorrect="(B)"), "incorrect", "answers_overlap"),
        (row(0, incorrect="(C)"), "incorrect", "letter_not_listed"),
        (row(0, category=["x"]), "category", "wrong_type"),
        (row(0, question="Which of them is older ?"), "question", "two_questions"),
        (row(0, system="Answer as a sailor would ."), "system", "unused_column"),
    ],
)
def test_a_bad_row_is_a_reject_in_its_place(tmp_path, bad, key_path, reason) -> None:
    path = write(tmp_path / "items.jsonl", [row(1), bad, row(2)])
    first, reject, last = read_items(path)
    assert isinstance(first, CapabilityItem)
    assert isinstance(last, CapabilityItem)
    assert (reject.row, reject.key_path, reject.reason) == (f"{path}:2", key_path, reason)


def test_a_file_without_a_single_item_is_refused(tmp_path) -> None:
    path = write(tmp_path / "items.json", [row(0, correct="A"), row(1, correct="B")])
    with pytest.raises(UserError, match=r"items\.json: none of its 2 rows .*items\.json:2: correct: expected a letter"):
        read_items(path)
    with pytest.raises(UserError, match="none of its 0 rows"):
        read_items(write(tmp_path / "empty.json", []))
    with pytest.raises(UserError, match="no such file"):
        read_items(tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text('[{"prompt": "a"')
    with pytest.raises(UserError, match=r"cut\.json:1: not valid JSON"):
        read_items(tmp_path / "cut.json")


@pytest.mark.parametrize("style", [PromptStyle(), CHAT])
def test_an_items_branches_are_its_letters_within_the_policys_frame(tmp_path, tokenizer, style) -> None:
    items = read_items(write(tmp_path / "items.json", [row(n) for n in range(3)]))
    for item, example in zip(items, encode_items(items, tokenizer=tokenizer, settings=settings(style)), strict=True):
        prompt = style.frame.opening + item.prompt + style.frame.closing
        assert example.prefix_ids.tolist() == tokenizer(prompt)["input_ids"]
        for branch, letter in zip(example.branches, (item.correct, item.incorrect), strict=True):
            assert branch.input_ids.tolist() == tokenizer(style.frame.answer_lead + letter)["input_ids"]  # and no EOS
            assert branch.label_mask.all()


def test_the_likelier_letter_is_the_answer(tmp_path, tiny_qwen2, tokenizer) -> None:
    items = read_items(write(tmp_path / "items.json", [row(n) for n in range(24)]))
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen2).eval()
    found = ask_items(items, scorer=BranchScorer(model), tokenizer=tokenizer, settings=settings())
    expected = []
    for item in items:
        prompt = tokenizer(f"{item.prompt}\nAnswer:")["input_ids"]
        letters = [tokenizer(f" {letter}")["input_ids"] for letter in (item.correct, item.incorrect)]
        expected.append(float(plain_score(model, prompt, letters[0]) > plain_score(model, prompt, letters[1])))
    assert [a.score for a in found] == expected
    assert 0 < sum(expected) < 24
    assert [a.category for a in found] == [item.category for item in items]


def plain_score(model, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logps = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(float(logps[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


def test_right_wrong_and_undecided(tmp_path, tokenizer, monkeypatch) -> None:
    items = read_items(write(tmp_path / "items.json", [row(n) for n in range(3)]))
    logps = [np.array(pair, dtype=np.float32) for pair in [(-1, -2), (-3, -2), (-2, -2)]]
    monkeypatch.setattr(capability, "score_branches", lambda *_, **__: logps)
    found = ask_items(items, scorer=None, tokenizer=tokenizer, settings=settings())
    assert [a.score for a in found] == [1.0, 0.0, 0.5]


def test_what_is_not_asked_is_a_reject_in_its_place(tmp_path, tiny_qwen2) -> None:
    long = row(4, prompt="(A) (B) " + "town " * 600)
    path = write(tmp_path / "items.json", [row(1), row(2, correct="x"), long, row(5)])
    found = ask_capability(job(tiny_qwen2), path)
    assert [f.reason if isinstance(f, Reject) else "" for f in found] == ["", "not_a_letter", "overlong", ""]
    assert "max_length is 512" in found[2].detail


def test_the_position_baseline_is_the_share_of_first_letters(tmp_path, tiny_qwen2) -> None:
    # (B) is right in rows 0 and 3, (A) in 1, 2, 4 and 5: 4 of 6.
    found = ask_capability(job(tiny_qwen2), write(tmp_path / "items.json", [row(n) for n in range(6)]))
    assert position_baseline(found) == pytest.approx(4 / 6)
    assert position_baseline([CapabilityAnswer("task:0", "task", 1.0)]) is None


def test_a_drop_is_what_the_same_items_lost() -> None:
    # Losses: 0 1 0 0 with the first seed, 1 1 0 0 with the second: 3 of 8.
    mean, low, high = drop(answered(1, 1, 0, 1), [answered(1, 0, 0, 1), answered(0, 0, 0, 1)])
    assert mean == 0.375
    assert 0 <= low < mean < high <= 1
    # A gain is a negative drop.
    assert drop(answered(0, 0), [answered(1, 1)]) == (-1.0, -1.0, -1.0)


def test_a_drops_interval_is_paired_by_item() -> None:
    scores = [1.0, 0.0] * 50
    # Unpaired, two accuracies of 0.5 on 100 items would differ by up to 0.14 by chance.
    assert drop(answered(*scores), [answered(*scores)]) == (0.0, 0.0, 0.0)
    # Losses 1 and 0: of the four resamples one has mean 0, one has mean 1.
    assert drop(answered(1, 1), [answered(0, 1)]) == (0.5, 0.0, 1.0)


def test_an_item_that_stands_in_a_file_three_times_is_drawn_once() -> None:
    before, after = (
        [CapabilityAnswer(f"item-{n // 3}", None, score) for n, score in enumerate(scores)]
        for scores in ([1.0] * 6, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    )
    # Two draws of two items: a quarter of the resamples has mean 0. Of six draws it would be one in 64.
    assert drop(before, [after]) == (0.5, 0.0, 1.0)


def test_a_drop_needs_two_items_and_the_same_ones() -> None:
    with pytest.raises(UserError, match="at least 2"):
        drop(answered(1), [answered(0)])
    with pytest.raises(UserError, match=r"different capability items \(2 and 3 items\).*max_length"):
        drop(answered(1, 0), [answered(1, 0), answered(1, 0, 1)])
    with pytest.raises(UserError, match="different capability items"):
        drop(answered(1, 0), [answered(1, 0, seed="other")])


def test_a_policy_with_an_adapter_is_not_asked_as_its_base(tmp_path, tiny_qwen2, adapter) -> None:
    path = write(tmp_path / "items.json", [row(n) for n in range(24)])
    before, after = (ask_capability(job(tiny_qwen2, adapter=place), path) for place in (None, adapter))
    assert [a.item_id for a in before] == [a.item_id for a in after]
    assert [a.score for a in before] != [a.score for a in after]


def test_the_released_items_are_all_read() -> None:
    from tests.conftest import _released

    items = read_items(_released("mmlu") / "mmlu_subset.json")
    assert [type(item) for item in items] == [CapabilityItem] * 570
    assert len({item.id for item in items}) == 570
    assert Counter(item.correct for item in items) == {"(A)": 299, "(B)": 271}  # the first letter: 52 %
    assert set(Counter(item.category for item in items).values()) == {10}


def lm_eval_task(folder: Path, items: list[CapabilityItem], **changes) -> Path:
    """Write the YAML file of an lm-eval task over the same items."""
    data = write(folder / "task.json", [{"prompt": i.prompt, "right": int(i.correct == "(B)")} for i in items])
    task = {
        "task": "two_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}\nAnswer:",
        "doc_to_choice": ["(A)", "(B)"],
        "doc_to_target": "{{right}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **changes,
    }
    path = folder / "task.yaml"
    path.write_text(json.dumps(task))  # JSON is YAML
    return path


@pytest.mark.parametrize("trained", [False, True])
def test_lm_eval_scores_every_item_as_the_reader_does(tmp_path, tiny_qwen2, adapter, trained) -> None:
    pytest.importorskip("lm_eval")
    path = write(tmp_path / "items.json", [row(n) for n in range(40)])
    policy = job(tiny_qwen2, adapter=adapter if trained else None)
    own = ask_capability(policy, path)
    theirs = ask_lm_eval(policy, [str(lm_eval_task(tmp_path, read_items(path)))])
    assert [a.score for a in theirs] == [a.score for a in own]
    assert 0 < sum(a.score for a in own) < 40
    assert (theirs[3].item_id, theirs[3].category, position_baseline(theirs)) == ("two_choice:3", "two_choice", None)


def test_lm_eval_asks_in_the_chat_template_that_was_trained(tmp_path, tiny_qwen2, tokenizer) -> None:
    pytest.importorskip("lm_eval")
    AutoModelForCausalLM.from_pretrained(tiny_qwen2).save_pretrained(tmp_path / "chat")
    chatty = AutoTokenizer.from_pretrained(tiny_qwen2)
    chatty.chat_template = TEMPLATE
    chatty.save_pretrained(tmp_path / "chat")
    path = write(tmp_path / "items.json", [row(n) for n in range(40)])
    policy = job(tmp_path / "chat", style=CHAT)
    own = ask_capability(policy, path)
    theirs = ask_lm_eval(policy, [str(lm_eval_task(tmp_path, read_items(path), doc_to_text="{{prompt}}"))])
    assert [a.score for a in theirs] == [a.score for a in own]
    plain = ask_capability(job(tmp_path / "chat"), path)
    assert [a.score for a in plain] != [a.score for a in own]


def test_of_several_filters_of_lm_eval_the_first_counts(tmp_path, tiny_qwen2) -> None:
    pytest.importorskip("lm_eval")
    items = read_items(write(tmp_path / "items.json", [row(n) for n in range(4)]))
    filters = [{"name": name, "filter": [{"function": "take_first"}]} for name in ("strict", "flexible")]
    theirs = ask_lm_eval(job(tiny_qwen2), [str(lm_eval_task(tmp_path, items, filter_list=filters))])
    assert [a.item_id for a in theirs] == [f"two_choice:{n}" for n in range(4)]


def test_lm_eval_tasks_without_data_or_without_scores_of_items_are_refused(tmp_path, tiny_qwen2) -> None:
    pytest.importorskip("lm_eval")
    task = lm_eval_task(tmp_path, [], dataset_kwargs={"data_files": str(tmp_path / "absent.json")})
    with pytest.raises(UserError, match=r"lm-eval cannot load .*task\.yaml: .*absent\.json.*lm-eval ls tasks"):
        ask_lm_eval(job(tiny_qwen2), [str(task)])
    items = read_items(write(tmp_path / "items.json", [row(n) for n in range(2)]))
    metric = {"metric": "f1", "aggregation": "f1", "higher_is_better": True}
    with pytest.raises(UserError, match="'two_choice' scores items by f1, none of which is acc or exact_match"):
        ask_lm_eval(job(tiny_qwen2), [str(lm_eval_task(tmp_path, items, metric_list=[metric]))])


def test_without_lm_eval_the_message_names_the_extra(tiny_qwen2, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"lm-eval is not installed .*\.\[lm-eval\]"):
        ask_lm_eval(job(tiny_qwen2), ["arc_easy"])
