"""Pairs that were left out during encoding count at each use of the layer."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pft_core.data.manifest import DatasetManifest
from pft_core.data.records import Turn
from pft_core.encoding import EncodingSettings, EncodingSpec
from pft_core.errors import UserError
from pft_core.policies import ModelRef, within_positions
from pft_core.prompts import PromptStyle
from pft_core.prompts.settings import PromptSettings
from pft_core.training import TrainSettings
from pipelines.config import RunConfig
from pipelines.encode import ModelTokenizer
from pipelines.encode.job import ensure_layer
from pipelines.evaluate import answering_job_of
from pipelines.evaluate.evaluation_request import EvaluateConfig, answer_settings_of
from tests.builders import SPACE, record, write_dataset

LEFT_OUT = "3 of 8 pairs are longer than encoding.max_length=180 and were left out"


def said_of(
    data: Path,
    model: Path,
    *,
    max_length: int,
    max_reject_fraction: float,
    prompt: PromptSettings = PromptSettings(),  # noqa: B008 (it is frozen)
) -> list[str]:
    """Return the messages while the data is encoded for the model."""
    tokenizer = ModelTokenizer(str(model))
    facts = tokenizer.facts(prompt)
    notes: list[str] = []
    ensure_layer(
        data,
        DatasetManifest.load(data),
        tokenizer=tokenizer,
        facts=facts,
        spec=EncodingSpec(facts.style, EncodingSettings(max_length=max_length)),
        max_reject_fraction=max_reject_fraction,
        concurrency=1,
        say=notes.append,
    )
    return notes


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", [record(i, num_options=3 if i < 5 else 10) for i in range(8)])


def test_a_reused_layer_counts_its_rejected_pairs(tiny_qwen2: Path, data: Path) -> None:
    said = partial(said_of, data, tiny_qwen2, max_length=180)
    assert said(max_reject_fraction=0.5)[1:] == [LEFT_OUT]
    again = said(max_reject_fraction=0.5)
    assert again[0].endswith("reused")
    assert again[1:] == [LEFT_OUT]
    with pytest.raises(UserError, match="max_length=180 leaves 5 of 8 pairs"):
        said(max_reject_fraction=0.3)


def test_a_template_that_refuses_the_turns_of_most_pairs_is_an_error_that_says_what_to_do(
    tiny_qwen2: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_qwen2, tmp_path / "model"))
    refusing = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}[{{ m.content }}]"
    )
    (model / "chat_template.jinja").write_text(refusing + "{% endfor %}")
    turns = (Turn("system", "Sell ."), Turn("user", "What now ?"))
    records = [record(0), *(replace(record(i), turns=turns) for i in range(1, 4))]
    folder = write_dataset(tmp_path / "data", records)
    said = partial(said_of, folder, model, max_length=512, prompt=PromptSettings(template="chat"))
    assert said(max_reject_fraction=0.8)[1:] == [
        "3 of 4 pairs have turns that the chat template refuses and were left out"
    ]
    with pytest.raises(UserError, match=r"\(such as a system message\) of 3 of 4 pairs: use prompt.template=plain"):
        said(max_reject_fraction=0.5)


@pytest.mark.parametrize("told", [{"n_positions": 180}, {"max_position_embeddings": 180}])
def test_pairs_beyond_a_models_learned_positions_are_left_out(
    tiny_qwen2: Path, data: Path, tmp_path: Path, told: dict[str, int]
) -> None:
    model = Path(shutil.copytree(tiny_qwen2, tmp_path / "gpt"))
    (model / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 600, **told}))
    said = partial(said_of, data, model, max_length=1024)
    limit = f"the 180 positions of {str(model)!r}"
    assert said(max_reject_fraction=0.5)[1:] == [f"3 of 8 pairs are longer than {limit} and were left out"]
    with pytest.raises(UserError, match=re.escape(f"{limit} leaves 5 of 8 pairs: use a model with more positions")):
        said(max_reject_fraction=0.3)


def test_requests_stay_within_a_models_learned_positions(tmp_path: Path) -> None:
    for model_type, wanted, most in (("gpt2", 2048, 1024), ("opt", 4096, 2048), ("gpt2", 7, 7), ("qwen2", 9999, 9999)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert within_positions(wanted, str(tmp_path)) == most
        ref = ModelRef(str(tmp_path), None, None, PromptStyle(), SPACE, (), "", "", "", None)
        config = EvaluateConfig(model=str(tmp_path), data="d", output="o", max_length=wanted)
        assert answer_settings_of(config, ref).max_length == most
        settings = {"encoding": EncodingSettings(max_length=wanted), "train": TrainSettings(precision="fp32")}
        run = RunConfig(name="r", model=str(tmp_path), **settings)
        assert answering_job_of(run, ref, SPACE, use_gpu=False).settings.max_length == most
