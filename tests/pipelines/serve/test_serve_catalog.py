"""Tests of the catalog: names of policies, refusals at the start, and the limits of the root folder."""

import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pft_core.data.manifest import DatasetManifest
from pft_core.data.preferences import PreferenceSpace
from pft_core.errors import UserError
from pft_core.policies.model_ref import MODEL_REF_NAME
from pft_core.policies.pretrained import load_tokenizer
from pft_core.prompts.chat_template import MOMENT
from pft_core.prompts.rendering import Frame, PromptStyle, chat_frame, template_digest
from pipelines.serve.policies import catalog as catalog_module
from pipelines.serve.policies.adapters import AdapterCache, LocatedAdapter, OtherContentError, content_of
from pipelines.serve.policies.catalog import Catalog, UnknownModelError
from pipelines.serve.serve_config import policy_place
from tests.builders import SPACE
from tests.serving import serve_config, write_policy

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def policies(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three policies with different weights."""
    root = tmp_path_factory.mktemp("policies")
    return [write_policy(root / f"{seed}", tiny_qwen2, seed=seed) for seed in (1, 2, 3)]


@pytest.fixture
def copied(policies: list[Path], tmp_path: Path) -> Callable[..., Path]:
    """A function that copies a policy and changes its reference."""

    def copy(number: int, place: str, **changes: Any) -> Path:
        folder = Path(shutil.copytree(policies[number], tmp_path / place))
        change(folder, **changes)
        return folder

    return copy


def change(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / MODEL_REF_NAME).read_text())
    (folder / MODEL_REF_NAME).write_text(json.dumps(raw | changes))


def start(policy: Path, tmp_path: Path, **settings: Any) -> Catalog:
    return Catalog(serve_config(policy, tmp_path / "cache", **settings), load_tokenizer)


def with_root(policies: list[Path], tmp_path: Path, **settings: Any) -> tuple[Catalog, Path]:
    """Return a catalog whose root is the folder `root`, which may be empty."""
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    return start(policies[0], tmp_path, store={"root": str(root)}, **settings), root


def id_of(policy: Path, name: str) -> str:
    return f"{name}@{content_of(policy / 'adapter').digits}"


def names(catalog: Catalog) -> list[str]:
    return [policy.id.partition("@")[0] for policy in catalog.listed()]


# --- a base without an adapter


def test_a_base_model_is_served_without_a_reference(tiny_qwen2: Path, policies: list[Path], tmp_path: Path) -> None:
    catalog = start(tiny_qwen2, tmp_path, adapters={"other": str(policies[1])})
    assert (catalog.model, names(catalog)) == (str(tiny_qwen2), ["policy", "base", "other"])
    assert catalog.resolve(None).source is catalog.resolve("base").source is None
    assert catalog.resolve(None).ref.space.axes == ()
    assert catalog.resolve("other").source is not None


def test_a_base_model_uses_its_own_chat_template(tiny_qwen2: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_qwen2, tmp_path / "model"))
    (model / "chat_template.jinja").write_text(TEMPLATE)
    assert start(model, tmp_path).default.ref.style.frame == chat_frame(load_tokenizer(str(model)))


def test_a_base_model_takes_its_axes_from_the_examples(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    DatasetManifest("toyworld", ("one",), SPACE, (), 1, 1, 1, 0, {}, {}, "c", "digest").save(tmp_path / "data")
    assert start("toyworld", tmp_path, examples=str(tmp_path / "data")).default.ref.space == SPACE


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("toyworld", "toyworld"),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("s3://bucket/folder", "s3://bucket/folder"),
        ("models:/name@alias", "models:/name@alias"),
        ("runs/mine", "{here}/runs/mine"),  # the folder `runs` exists, so this is a missing folder in it
        ("./Qwen/base", "{here}/Qwen/base"),
        ("a/b/c", "{here}/a/b/c"),
        ("mine", "{here}/mine"),
        ("~/mine", "{home}/mine"),
    ],
)
def test_a_hub_name_is_kept_and_a_folder_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert policy_place(place) == expected.format(here=tmp_path, home=Path.home())


def test_a_name_that_is_not_on_the_hub_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model='nobody/nothing'"):
        start("nobody/nothing", tmp_path)  # type: ignore[arg-type]


# --- names


def test_a_policy_is_found_by_its_name_and_by_its_id(policies: list[Path], tmp_path: Path) -> None:
    catalog = start(policies[0], tmp_path, adapters={"other": str(policies[1])})
    assert {catalog.resolve(name).id for name in (None, "", "policy", id_of(policies[0], "policy"))} == {
        id_of(policies[0], "policy")
    }
    assert catalog.resolve("other").id == catalog.resolve(id_of(policies[1], "other")).id == id_of(policies[1], "other")
    assert catalog.resolve("base").source is None
    assert names(catalog) == ["policy", "base", "other"]


@pytest.mark.parametrize(
    "name", ["nobody", "steered", "slider", "policy@champion", "policy@0123456789ab", "nobody@0123456789ab", "Policy"]
)
def test_another_name_is_unknown(policies: list[Path], tmp_path: Path, name: str) -> None:
    with pytest.raises(UnknownModelError, match=name.partition("@")[0]):
        start(policies[0], tmp_path).resolve(name)


def test_a_policy_replaced_under_its_name_gets_another_id(
    policies: list[Path], copied: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copied(0, "served")
    catalog, cache = start(folder, tmp_path), AdapterCache(tmp_path / "cache", max_copies=2)
    before = catalog.resolve(None)
    for file in (policies[1] / "adapter").iterdir():
        shutil.copy(file, folder / "adapter")  # in place, and of the same size
    with pytest.raises(UserError, match=r"not the adapter that its model_ref\.json describes"):
        catalog.resolve(None)
    shutil.copy(policies[1] / "model_ref.json", folder)
    after = catalog.resolve(None)
    assert (before.id, after.id) == (id_of(policies[0], "policy"), id_of(policies[1], "policy"))
    stale = catalog.resolve(before.id)
    assert isinstance(stale.source, LocatedAdapter)
    with pytest.raises(OtherContentError):
        cache.held(stale.source).__enter__()
    with pytest.raises(UnknownModelError, match="is not served: 'policy' is now 'policy@"):
        start(folder, tmp_path).resolve(before.id)  # a server that never saw the old one


def test_a_replaced_file_with_the_same_time_and_size_is_noticed(copied: Callable[..., Path], tmp_path: Path) -> None:
    folder = copied(0, "served", adapter_config_sha256=None)  # an older reference, which does not check this file
    catalog, file = start(folder, tmp_path), folder / "adapter" / "adapter_config.json"
    before, stat = catalog.resolve(None).id, file.stat()
    file.write_bytes(file.read_bytes().replace(b"8", b"9"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size
    assert catalog.resolve(None).id == id_of(folder, "policy") != before


def test_a_policy_whose_adapter_or_base_was_changed_is_refused(
    policies: list[Path], copied: Callable[..., Path], tiny_qwen2: Path, tmp_path: Path
) -> None:
    folder = copied(0, "served")
    file = folder / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 160}))
    with pytest.raises(UserError, match=r"policy: not the adapter .* \(sha256 of adapter_config\.json"):
        start(folder, tmp_path)
    base = Path(shutil.copytree(tiny_qwen2, tmp_path / "base"))
    folder = write_policy(tmp_path / "policy", base, seed=0)
    start(folder, tmp_path)
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match="base is not the base that it was trained on"):
        start(folder, tmp_path)


def test_unchanged_files_are_not_read_again(
    policies: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = start(policies[0], tmp_path)

    def read(*_: Any, **__: Any) -> Any:
        raise AssertionError("read again")

    for name in ("content_of", "reference_at", "template_digest"):
        monkeypatch.setattr(catalog_module, name, read)
    assert catalog.resolve("policy").id == id_of(policies[0], "policy")


def test_a_prompt_template_that_changes_at_runtime_is_refused(copied: Callable[..., Path], tmp_path: Path) -> None:
    folder = copied(0, "served")
    catalog = start(folder, tmp_path)
    change(folder, template_digest="0" * 16)
    with pytest.raises(UserError, match="prompt template 0000000000000000"):
        catalog.resolve(None)


def test_a_base_that_changes_at_runtime_is_refused(copied: Callable[..., Path], tmp_path: Path) -> None:
    folder = copied(0, "served")
    catalog = start(folder, tmp_path)
    change(folder, base="elsewhere")
    with pytest.raises(UserError, match="policy is trained on 'elsewhere', but this server runs"):
        catalog.resolve(None)


# --- refusals at the start


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"template_digest": "0" * 16},
            r"trained with the prompt template 0{16}, but this server renders \w{16}: ",
        ),
        ({"style": {"frame": {}}}, "model_ref.json: not a model reference"),
        ({"style": None}, "model_ref.json: not a model reference"),
        ({"space": {"name": "none", "axes": []}}, "its space has no axis"),
        ({"adapter": "nowhere"}, r"nowhere/adapter_config.json: no such file; an adapter is a folder from"),
        ({"adapter": "\0"}, "not a policy"),
        ({"data_digest": "\ud800"}, "not a policy"),
        ({"config_digest": float("nan")}, "not a policy"),
        ({"unknown": 1}, "not a model reference"),
    ],
)
def test_a_policy_with_a_damaged_or_outdated_reference_is_refused(
    copied: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        start(copied(0, "odd", **changes), tmp_path)


def test_a_damaged_style_is_refused(copied: Callable[..., Path], tmp_path: Path) -> None:
    style = PromptStyle().to_dict() | {"frame": {"opening": 5, "closing": "", "answer_lead": ""}}
    with pytest.raises(UserError, match="its style or space is damaged"):
        start(copied(0, "odd", style=style), tmp_path)


@pytest.fixture
def base_with_template(tiny_qwen2: Path, tmp_path: Path) -> Path:
    base = Path(shutil.copytree(tiny_qwen2, tmp_path / "base"))
    (base / "chat_template.jinja").write_text(TEMPLATE)
    return base


def test_a_chat_template_that_differs_from_the_policys_is_refused(base_with_template: Path, tmp_path: Path) -> None:
    style = PromptStyle(frame=chat_frame(load_tokenizer(str(base_with_template))))
    policy = write_policy(tmp_path / "p", base_with_template, seed=1, style=style)
    start(policy, tmp_path)
    template = base_with_template / "chat_template.jinja"
    template.write_text(TEMPLATE.replace("<assistant>", "<model>"))
    with pytest.raises(
        UserError, match=r"policy: trained with a chat template that differs from .*: put the tokenizer"
    ):
        start(policy, tmp_path)
    template.unlink()
    with pytest.raises(UserError, match="trained with a chat template that differs"):
        start(policy, tmp_path)


@pytest.mark.parametrize("trained_at", [MOMENT, datetime(2025, 7, 8, 9, 10, 11)])
def test_a_policy_trained_with_a_template_with_a_clock_keeps_its_frame_at_any_time(
    base_with_template: Path, tmp_path: Path, trained_at: datetime
) -> None:
    clock = "<system>{{ strftime_now('%d %b %Y %H:%M:%S') }}</system>"
    (base_with_template / "chat_template.jinja").write_text(clock + TEMPLATE)
    frame = chat_frame(load_tokenizer(str(base_with_template)), at=trained_at)
    policy = write_policy(tmp_path / "p", base_with_template, seed=1, style=PromptStyle(frame=frame))
    assert start(policy, tmp_path).default.ref.style.frame == frame


def test_a_custom_frame_is_refused_as_a_different_chat_template(tiny_qwen2: Path, tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "p", tiny_qwen2, seed=1, style=PromptStyle(frame=Frame("<", ">", "")))
    with pytest.raises(UserError, match="trained with a chat template that differs"):
        start(policy, tmp_path)


@pytest.mark.parametrize("role", ["policy", "adapters", "ends", "root"])
def test_the_error_names_a_place_without_a_policy(policies: list[Path], tmp_path: Path, role: str) -> None:
    nowhere = str(tmp_path / "nowhere")
    settings: dict[str, Any] = {
        "policy": {},
        "adapters": {"adapters": {"other": nowhere}},
        "ends": {"ends": {"first": str(policies[0]), "second": nowhere}},
        "root": {"store": {"root": nowhere}},
    }[role]
    with pytest.raises(UserError, match=r"nowhere.*: no such file"):
        start(Path(nowhere) if role == "policy" else policies[0], tmp_path, **settings)


@pytest.mark.parametrize("role", ["adapters", "ends"])
def test_another_base_is_refused(
    policies: list[Path], copied: Callable[..., Path], tiny_llama: Path, tmp_path: Path, role: str
) -> None:
    other = str(copied(1, "other", base=str(tiny_llama)))
    settings: dict[str, Any] = {"adapters": {"other": other}, "ends": {"first": str(policies[0]), "second": other}}
    with pytest.raises(UserError, match=rf"(other|slider) is trained on '{tiny_llama}', but this server runs"):
        start(policies[0], tmp_path, **{role: settings[role]})


def test_a_fully_fine_tuned_model_is_served_only_by_itself(
    policies: list[Path], copied: Callable[..., Path], tiny_qwen2: Path, tmp_path: Path
) -> None:
    full = copied(0, "full", adapter=None, weights=str(tiny_qwen2), adapter_sha256=None)
    catalog = start(full, tmp_path)
    assert catalog.resolve(None).source is None
    assert catalog.model == str(tiny_qwen2)
    message = "other: a fully fine-tuned model shares no base"
    with pytest.raises(UserError, match=message):
        start(policies[0], tmp_path, adapters={"other": str(full)})
    with pytest.raises(UserError, match=message):
        start(full, tmp_path, adapters={"other": str(policies[0])})
    with pytest.raises(UserError, match="slider: a fully fine-tuned model shares no base"):
        start(full, tmp_path, ends={"first": str(full), "second": str(full)})


def test_a_fully_fine_tuned_model_that_replaces_an_adapter_at_runtime_is_refused(
    copied: Callable[..., Path], tiny_qwen2: Path, tmp_path: Path
) -> None:
    folder = copied(0, "served")
    catalog = start(folder, tmp_path)
    change(folder, adapter=None, weights=str(tiny_qwen2))
    with pytest.raises(UserError, match="shares no base"):
        catalog.resolve(None)


def test_ends_with_different_prompt_templates_are_refused(
    policies: list[Path], tiny_qwen2: Path, tmp_path: Path
) -> None:
    style = PromptStyle(condition_position="after")
    after = write_policy(tmp_path / "after", tiny_qwen2, seed=1, style=style)
    other_space = PreferenceSpace("other", SPACE.axes[:1])
    narrow = write_policy(tmp_path / "narrow", tiny_qwen2, seed=1, space=other_space)
    for odd in (after, narrow):
        with pytest.raises(UserError, match="ends: the two policies have different prompt templates"):
            start(policies[0], tmp_path, ends={"first": str(policies[0]), "second": str(odd)})


def test_ends_without_adapters_are_refused(policies: list[Path], copied: Callable[..., Path], tmp_path: Path) -> None:
    bare = copied(0, "bare", adapter=None)
    with pytest.raises(UserError, match=r"ends: .*bare has no LoRA adapter to interpolate"):
        start(policies[0], tmp_path, ends={"first": str(policies[0]), "second": str(bare)})


# --- the root folder


def test_a_folder_of_the_root_is_served_by_its_name(
    policies: list[Path], copied: Callable[..., Path], tmp_path: Path
) -> None:
    copied(1, "root/early")
    catalog, _ = with_root(policies, tmp_path)
    assert catalog.resolve("early").id == id_of(policies[1], "early")
    copied(2, "root/later")
    assert catalog.resolve("later").id == id_of(policies[2], "later")
    assert catalog.resolve(id_of(policies[2], "later")).id == id_of(policies[2], "later")
    assert names(catalog) == ["policy", "base", "early", "later"]
    shutil.rmtree(tmp_path / "root" / "later")
    with pytest.raises(UnknownModelError):
        catalog.resolve("later")
    assert names(catalog) == ["policy", "base", "early"]


def test_listing_reads_no_weights_of_the_root(
    policies: list[Path], copied: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(1, "root/big")
    catalog, _ = with_root(policies, tmp_path)
    monkeypatch.setattr(catalog_module, "content_of", lambda folder: pytest.fail("read"))
    listed = catalog.listed()[-1]
    assert listed.id == "big"
    assert listed.ref.adapter_sha256 == json.loads((policies[1] / MODEL_REF_NAME).read_text())["adapter_sha256"]


def test_folders_beyond_the_length_of_the_list_are_served(
    policies: list[Path], copied: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "MAX_LISTED", 1)
    copied(1, "root/first")
    copied(2, "root/second")
    catalog, _ = with_root(policies, tmp_path)
    assert names(catalog) == ["policy", "base", "first"]
    assert catalog.resolve("second").id == id_of(policies[2], "second")


def test_the_recipes_names_take_precedence_over_the_roots(
    policies: list[Path], copied: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("policy", "base", "other", "slider", "steered"):
        copied(2, f"root/{name}")
    catalog, _ = with_root(policies, tmp_path, adapters={"other": str(policies[1])})
    assert catalog.resolve("policy").id == id_of(policies[0], "policy")
    assert catalog.resolve("other").id == id_of(policies[1], "other")
    assert catalog.resolve("base").source is None
    for name in ("slider", "steered"):
        with pytest.raises(UnknownModelError):
            catalog.resolve(name)
    assert names(catalog) == ["policy", "base", "other"]


def apply_damage(folder: Path, damage: str) -> None:
    ref = folder / MODEL_REF_NAME
    if damage == "no adapter":
        shutil.rmtree(folder / "adapter")
    elif damage == "no weights":
        (folder / "adapter" / "adapter_model.safetensors").unlink()
    elif damage == "a folder for a file":
        (folder / "adapter" / "adapter_config.json").unlink()
        (folder / "adapter" / "adapter_config.json").mkdir()
    elif damage == "no reference":
        ref.unlink()
    elif damage == "a reference that links to itself":
        ref.unlink()
        ref.symlink_to(ref)
    elif damage == "another base":
        change(folder, base="x")
    elif damage == "another template":
        change(folder, template_digest="x")
    elif damage == "fully fine-tuned":
        change(folder, adapter=None, weights="w")
    else:
        texts = {"an empty file": "", "not JSON": "{", "a list": "[]", "not text": b"\xff", "deep": "[" * 100_000}
        content = texts[damage]
        ref.write_bytes(content if isinstance(content, bytes) else content.encode())


DAMAGES = [
    "no adapter", "no weights", "a folder for a file", "no reference", "a reference that links to itself",
    "another base", "another template", "fully fine-tuned", "an empty file", "not JSON", "a list", "not text", "deep",
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_policy_raises_a_user_error_and_hides_no_other_policy(
    policies: list[Path], copied: Callable[..., Path], tmp_path: Path, damage: str
) -> None:
    apply_damage(copied(1, "root/broken"), damage)
    copied(2, "root/whole")
    catalog, _ = with_root(policies, tmp_path)
    assert names(catalog)[:2] == ["policy", "base"]
    assert "whole" in names(catalog)
    with pytest.raises(UserError):
        catalog.resolve("broken")
    assert catalog.resolve("whole").id == id_of(policies[2], "whole")


def test_a_damaged_policy_of_the_recipe_is_not_listed(copied: Callable[..., Path], tmp_path: Path) -> None:
    catalog = start(copied(0, "served"), tmp_path, adapters={"other": str(copied(1, "other"))})
    shutil.rmtree(tmp_path / "other")
    assert names(catalog) == ["policy", "base"]


def test_a_root_that_disappears_hides_no_other_policy(policies: list[Path], tmp_path: Path) -> None:
    catalog, root = with_root(policies, tmp_path)
    root.rmdir()
    assert names(catalog) == ["policy", "base"]
    with pytest.raises(UnknownModelError):
        catalog.resolve("early")


@pytest.mark.parametrize("linked", ["the folder", "the reference", "the adapter", "the weights"])
def test_a_link_to_outside_the_root_is_refused(
    policies: list[Path], copied: Callable[..., Path], tmp_path: Path, linked: str
) -> None:
    outside, folder = copied(1, "outside"), copied(2, "root/linked")
    catalog, _ = with_root(policies, tmp_path)
    part = {
        "the folder": "",
        "the reference": MODEL_REF_NAME,
        "the adapter": "adapter",
        "the weights": "adapter/adapter_model.safetensors",
    }[linked]
    replaced = folder / part
    if replaced.is_dir():
        shutil.rmtree(replaced)
    else:
        replaced.unlink()
    replaced.symlink_to(outside / part)
    with pytest.raises(UserError, match=r"is outside store\.root"):
        catalog.resolve("linked")
    assert names(catalog) == ["policy", "base"]


@pytest.mark.parametrize("adapter", ["../../outside/adapter", "{outside}/adapter"])
def test_a_reference_in_the_root_cannot_name_an_adapter_outside(
    policies: list[Path], copied: Callable[..., Path], tmp_path: Path, adapter: str
) -> None:
    outside = copied(1, "outside")
    copied(2, "root/odd", adapter=adapter.format(outside=outside))
    catalog, _ = with_root(policies, tmp_path)
    with pytest.raises(UserError, match=r"is outside store\.root"):
        catalog.resolve("odd")


def test_a_link_within_the_root_is_followed(policies: list[Path], copied: Callable[..., Path], tmp_path: Path) -> None:
    copied(1, "root/v2")
    catalog, root = with_root(policies, tmp_path)
    (root / "latest").symlink_to("v2")
    assert catalog.resolve("latest").id == id_of(policies[1], "latest")


def test_the_template_digest_is_that_of_style_and_space(policies: list[Path]) -> None:
    raw = json.loads((policies[0] / MODEL_REF_NAME).read_text())
    assert raw["template_digest"] == template_digest(PromptStyle(), SPACE)
