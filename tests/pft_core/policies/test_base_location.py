"""A reference loads after its folder was moved, and holds no path of a user, a checkout or an upload."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pft_core.errors import UserError
from pft_core.policies import identity, load_base, load_tokenizer
from pft_core.policies.identity import base_digest, model_identity
from pft_core.policies.model_ref import MODEL_REF_NAME, ModelRef
from pft_core.policies.shipped_base import SHIPPED_BASE, TOYWORLD
from pft_core.prompts import PromptStyle
from tests.builders import SPACE


def saved(base: str, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    ref = ModelRef(base, "adapter", None, PromptStyle("after", "letter"), SPACE, (0, 1), "t", "d", "c", None)
    raw: dict[str, Any] = json.loads(ref.save(folder).read_text())
    return raw


def a_model(folder: Path, weights: str = "w") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)
    return folder


@pytest.mark.parametrize("base", [TOYWORLD, str(SHIPPED_BASE)])
def test_the_shipped_base_is_referred_to_and_loads_by_its_name(base: str, tmp_path: Path) -> None:
    assert saved(base, tmp_path)["base"] == TOYWORLD
    assert "base_model" not in (tmp_path / MODEL_REF_NAME).read_text()
    assert ModelRef.load(tmp_path).base == TOYWORLD
    assert load_tokenizer(TOYWORLD).eos_token_id is not None
    model = load_base(TOYWORLD, precision="fp32", gradient_checkpointing=False, device=torch.device("cpu"))
    assert model.config.vocab_size > 0
    assert base_digest(TOYWORLD) == base_digest(str(SHIPPED_BASE))


def test_an_older_reference_into_a_deleted_upload_means_the_shipped_base(tmp_path: Path) -> None:
    raw = saved(TOYWORLD, tmp_path)
    gone = "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1a2b/pft_core/toyworld/base_model"
    for base, opened in ((gone, TOYWORLD), (str(tmp_path), str(tmp_path)), ("owner/name", "owner/name")):
        (tmp_path / MODEL_REF_NAME).write_text(json.dumps(raw | {"base": base}))
        assert ModelRef.load(tmp_path).base == opened


def test_a_run_loads_after_it_was_moved_with_or_without_its_base(tmp_path: Path) -> None:
    base = a_model(tmp_path / "project" / "models" / "m")
    run = tmp_path / "project" / "runs" / "r"
    raw = saved(str(base), run)
    assert raw["base"] == "./../../models/m"
    assert ModelRef.load(run).base == str(base)
    alone = Path(shutil.copytree(run, tmp_path / "elsewhere" / "deep" / "r"))
    assert ModelRef.load(alone).base == str(base)
    shutil.move(tmp_path / "project", tmp_path / "new")
    assert ModelRef.load(tmp_path / "new" / "runs" / "r").base == str(tmp_path / "new" / "models" / "m")


def test_a_moved_run_does_not_take_another_model_for_its_base(tmp_path: Path) -> None:
    base, run = a_model(tmp_path / "a" / "m"), tmp_path / "a" / "r"
    saved(str(base), run)
    a_model(tmp_path / "b" / "m", weights="others")
    moved = Path(shutil.copytree(run, tmp_path / "b" / "r"))
    shutil.rmtree(tmp_path / "a")
    beside = a_model(moved / "m")
    assert ModelRef.load(moved).base == str(beside)
    shutil.rmtree(beside)
    with pytest.raises(UserError, match=r"was moved, and .*m is not the base that it was trained on"):
        ModelRef.load(moved)
    shutil.rmtree(tmp_path / "b" / "m")
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(ModelRef.load(moved).base)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_base_that_was_changed_in_place_is_refused(name: str, tmp_path: Path) -> None:
    base = a_model(tmp_path / "m")
    saved(str(base), tmp_path / "r")
    (base / "generation_config.json").write_text("{}")  # decides neither tokens nor scores
    assert ModelRef.load(tmp_path / "r").base == str(base)
    content = (base / name).read_text()
    (base / name).write_text('{"vocab_size": 7}')
    with pytest.raises(UserError, match=r"r: .*m is not the base that it was trained on"):
        ModelRef.load(tmp_path / "r")
    (base / name).write_text(content)
    assert ModelRef.load(tmp_path / "r").base == str(base)
    (base / "config.json").unlink()
    with pytest.raises(UserError, match="is not the base"):
        ModelRef.load(tmp_path / "r")


def test_an_unchanged_base_is_recognized_without_reading_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(str(a_model(tmp_path / "m")), tmp_path / "r")
    monkeypatch.setattr(identity, "_sha256", lambda *file: pytest.fail(f"{file} was read"))
    assert ModelRef.load(tmp_path / "r").base == str(tmp_path / "m")


def test_an_older_reference_with_only_the_digest_of_its_base_loads(tmp_path: Path) -> None:
    raw = saved(str(a_model(tmp_path / "m")), tmp_path / "r")
    older = {key: value for key, value in raw["base_marks"].items() if key not in ("stamp", "tokens")}
    raw = {key: value for key, value in raw.items() if key != "adapter_config_sha256"}
    (tmp_path / "r" / MODEL_REF_NAME).write_text(json.dumps(raw | {"base_marks": older}))
    assert ModelRef.load(tmp_path / "r").base == str(tmp_path / "m")


def test_changed_weights_of_a_full_fine_tuning_are_refused(tmp_path: Path) -> None:
    weights = a_model(tmp_path / "run" / "weights")
    style = PromptStyle("after", "letter")
    ModelRef(TOYWORLD, None, "weights", style, SPACE, (0, 1), "t", "d", "c", None).save(tmp_path / "run")
    moved = Path(shutil.copytree(tmp_path / "run", tmp_path / "moved"))
    assert ModelRef.load(moved).weights == str(moved / "weights")
    (weights / "model.safetensors").write_text("others")
    with pytest.raises(UserError, match=r"run/weights: not the weights that its model_ref\.json describes"):
        ModelRef.load(tmp_path / "run")


def test_a_models_identity_does_not_depend_on_its_path(tmp_path: Path) -> None:
    one, two = a_model(tmp_path / "a" / "m"), a_model(tmp_path / "b" / "n")
    assert model_identity(str(one)) == model_identity(str(two))
    assert model_identity("owner/name") == "owner/name"
    for name in ("tokenizer.json", "model.safetensors", "chat_template.jinja"):
        before = model_identity(str(two))
        (two / name).write_text("changed")
        assert model_identity(str(two)) != before
