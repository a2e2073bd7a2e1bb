"""A base trained on texts: it loads, is equal for equal input, and never sees poles."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pft_core.data.preferences import load_space
from pft_core.data.records import Option, PairedExample
from pft_core.data.sources.toyworld import generate
from pft_core.encoding.tokens import tokenize
from pft_core.evaluation.answers import AnswerSettings, Question, by_likelihood
from pft_core.policies.model import load_base
from pft_core.policies.pretrained import load_tokenizer
from pft_core.prompts.rendering import PromptStyle
from pft_core.scoring.scorer import BranchScorer
from pft_core.toyworld.text_base import Effort, distinctive_words, make_text_base

STYLE = PromptStyle(condition_position="after", answer="option")
EFFORT = Effort(copying_steps=4, answering_steps=4, tokens_per_step=256)
RECORDS = list(generate(seed=0, split="train", num_per_axis=6))


def _made(folder: Path, records: list[PairedExample] = RECORDS, *, seed: int = 0) -> Path:
    make_text_base(records, folder, seed=seed, style=STYLE, effort=EFFORT)
    return folder


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _made(tmp_path_factory.mktemp("text_base") / "base")


def test_the_base_loads_and_answers_in_the_recipes_style(base: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    model = load_base(str(base), precision="fp32", gradient_checkpointing=False, device=torch.device("cpu"))
    settings = AnswerSettings(STYLE, load_space("toyworld"), max_length=256, tokens_per_batch=1024, max_new_tokens=1)
    questions = [Question(RECORDS[0], "one", side) for side in (0, 1, None)]
    answers = by_likelihood(questions, scorer=BranchScorer(model), tokenizer=tokenizer, settings=settings)
    assert all(isinstance(answer, frozenset) and len(answer) == 1 for answer in answers)


def test_any_text_is_encoded_and_decoded_without_loss(base: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    text = "A zyzzyva, d\u00e9j\u00e0 vu: \u4f60\u597d (B) 'quoted'\n"
    row = tokenize([text + " fits"], [len(text)], [(0, 1)], tokenizer)[0]
    assert row.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row.ids[: row.answer_start]) == text
    assert tokenizer.decode(row.ids[row.answer_start : -1]) == " fits"


def test_equal_input_gives_equal_files_and_another_seed_does_not(base: Path, tmp_path: Path) -> None:
    assert _bytes(_made(tmp_path / "again")) == _bytes(base)
    assert _bytes(_made(tmp_path / "other", seed=1)) != _bytes(base)


def test_neither_poles_nor_axes_nor_the_order_of_options_reach_the_base(base: Path, tmp_path: Path) -> None:
    def without(record: PairedExample) -> PairedExample:
        options = tuple(Option(o.text, 1 - o.side) for o in reversed(record.options))
        return replace(record, id="x", axis="Risk", options=options)

    assert _bytes(_made(tmp_path / "swapped", [without(record) for record in RECORDS])) == _bytes(base)


def test_an_existing_folder_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "left_over").touch()
    _made(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert not (folder / "left_over").exists()


def test_distinctive_words_occur_in_one_option_only() -> None:
    options = ["waits for Ann at home", "waits outside with friends", "Yes", "No"]
    assert distinctive_words(options) == [["home"], ["outside", "with", "friends"], ["Yes"], ["No"]]
