import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pft_core.data.preferences import load_space
from pft_core.errors import UserError
from pft_core.files import file_sha256
from pft_core.policies import gguf
from pft_core.policies.base_location import BASE_MARKS
from pft_core.policies.gguf_conversion import convert
from pft_core.policies.model import load_base
from pft_core.policies.model_ref import MODEL_REF_NAME, ModelRef
from pft_core.policies.pretrained import load_tokenizer, place_of_model, refuse_unusable_model
from pft_core.prompts import PromptStyle
from tests.gguf_files import write_gguf


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A GGUF file, and a cache that holds its converted folder."""
    root = tmp_path_factory.mktemp("gguf")
    file, cache = write_gguf(root / "tiny.gguf"), root / "cache"
    sha256 = file_sha256(file)
    convert(file, cache / f"tiny-{sha256[:16]}", sha256)
    return file, cache


@pytest.fixture
def file(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gguf, "CACHE", files[1])
    return files[0]


def test_a_converted_model_is_the_one_that_transformers_reads_from_the_file(file: Path) -> None:
    source: Any = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    expected: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = load_tokenizer(str(file))
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(**source).get_vocab()
    ids = tokenizer("Over the hill: 12.", return_tensors="pt")["input_ids"]
    ours: Any = load_base(str(file), precision="fp32", gradient_checkpointing=False, device=torch.device("cpu"))
    assert torch.equal(ours(ids).logits, expected(ids).logits)
    assert ours.config.tie_word_embeddings
    assert not hasattr(ours.config, "quantization_config")
    refuse_unusable_model(str(file), wants_chat=True)


def test_the_record_of_a_conversion_names_the_file_and_its_kinds_of_weights(file: Path) -> None:
    record = gguf.conversion_of(Path(place_of_model(str(file))))
    # One layer of seven matrices, the embedding, and three norms, which stay whole.
    assert record == {
        "file": "tiny.gguf",
        "sha256": file_sha256(file),
        "weights": {"Q4_1": 8, "F32": 3},
        "license": "apache-2.0",
        "converted_to": "float32",
    }


def test_a_file_is_converted_once_and_again_when_its_content_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = []

    def fake(file: Path, folder: Path, sha256: str) -> None:
        converted.append(folder)
        folder.mkdir(parents=True)
        (folder / gguf.CONVERSION_NAME).touch()

    monkeypatch.setattr(gguf, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(gguf, "_convert", fake)
    (file := tmp_path / "model.gguf").write_text("one")
    assert gguf.converted_folder(file) == gguf.converted_folder(file)
    file.write_text("another")
    gguf.converted_folder(file)
    assert len(converted) == 2


def test_a_damaged_file_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "CACHE", tmp_path / "cache")
    (file := tmp_path / "model.gguf").write_bytes(write_gguf(tmp_path / "whole.gguf").read_bytes()[:4000])
    with pytest.raises(UserError, match=r"^model='.*model.gguf': cannot be loaded as a causal language model [^\n]+$"):
        place_of_model(str(file))
    assert not (tmp_path / "cache").exists()


def test_a_missing_file_and_a_missing_package_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"model='./no.gguf': no such file"):
        refuse_unusable_model("./no.gguf", wants_chat=False)
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="run `make setup-smollm2`"):
        refuse_unusable_model("smollm2-135m", wants_chat=False)


def test_a_reference_finds_a_gguf_base_that_moved_with_it_and_records_its_conversion(
    file: Path, tmp_path: Path
) -> None:
    (here := tmp_path / "here" / "run").mkdir(parents=True)
    shutil.copy(file, here.parent)
    style, space = PromptStyle(), load_space("toyworld")
    ref = ModelRef(str(here.parent / file.name), None, None, style, space, (0, 1), "t", "d", "c", None)
    ref.save(here)
    shutil.move(here.parent, tmp_path / "there")
    moved = ModelRef.load(tmp_path / "there" / "run")
    assert moved.base == str(tmp_path / "there" / file.name)
    assert moved.base_conversion == gguf.conversion_of(Path(place_of_model(str(file))))
    again = replace(moved, base="smollm")  # a base with a name has no conversion of another
    again.save(tmp_path)
    assert {"base_conversion", BASE_MARKS}.isdisjoint(json.loads((tmp_path / MODEL_REF_NAME).read_text()))


@pytest.mark.real
def test_smollm2_knows_a_capital() -> None:
    if gguf.find_spec(gguf.SMOLLM2_PACKAGE) is None:
        pytest.skip("SmolLM2 is not installed: make setup-smollm2")
    tokenizer: Any = load_tokenizer("smollm2-135m")
    model: Any = load_base("smollm2-135m", precision="fp32", gradient_checkpointing=False, device=torch.device("cpu"))
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    answer = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert "Paris" in tokenizer.decode(answer[0, ids.shape[1] :])
