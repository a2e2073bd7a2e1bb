import json
import shutil
from dataclasses import replace
from importlib.machinery import ModuleSpec
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
from pft_core.policies.pretrained import load_tokenizer, place_of_model, public_name, refuse_unusable_model
from pft_core.prompts import PromptStyle
from pipelines.config import RunConfig
from pipelines.embedded_data import with_embedded
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


def test_a_file_without_all_weights_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model-00001-of-00002.gguf", layers_named=2)
    # A layer has seven matrices and two norms.
    with pytest.raises(UserError, match=r"lacks 9 weights of the model, such as model\.layers\.1\..* whole model"):
        convert(file, tmp_path / "folder", "sha256")
    assert not (tmp_path / "folder").exists()


def test_a_file_is_known_by_its_ending_in_capital_letters_too(tmp_path: Path) -> None:
    (file := tmp_path / "M.GGUF").touch()
    assert gguf.gguf_file(str(file)) == gguf.model_place(str(file)) == file
    assert public_name(str(file)) == "M"


def test_a_link_in_the_cache_of_the_hub_keeps_its_name(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = shutil.copy(file, tmp_path / "0123abcd")
    (tmp_path / file.name).symlink_to(blob)
    monkeypatch.chdir(tmp_path)
    assert gguf.model_place(file.name) == tmp_path / file.name
    ref = ModelRef(file.name, None, None, PromptStyle(), load_space("toyworld"), (0, 1), "t", "d", "c", None)
    (run := tmp_path / "run").mkdir()
    ref.save(run)
    assert ModelRef.load(run).base == str(tmp_path / file.name)


def test_the_name_of_a_packaged_model_never_means_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (gguf.SMOLLM2, "toyworld", "other"):
        (tmp_path / name).mkdir()
    assert gguf.model_place(gguf.SMOLLM2) is gguf.model_place("toyworld") is None
    assert gguf.model_place(f"./{gguf.SMOLLM2}") == tmp_path / gguf.SMOLLM2
    config = RunConfig(name="x", model=gguf.SMOLLM2, storage=str(tmp_path))
    assert with_embedded(config).model == gguf.SMOLLM2
    assert with_embedded(config.model_copy(update={"model": "other"})).model == str(tmp_path / "other")


def test_a_folder_with_the_name_of_the_package_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.gguf").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gguf, "find_spec", lambda name: ModuleSpec(name, None, is_package=True))
    with pytest.raises(UserError, match="run `make setup-smollm2`"):
        gguf.gguf_file(gguf.SMOLLM2)


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
