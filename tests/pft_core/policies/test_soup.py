"""Soups: they equal peft's own combination and averages by hand, are the same bytes each time, and refuse bad parts."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from pft_core.encoding.batching import collate
from pft_core.errors import UserError
from pft_core.files import contents, file_sha256
from pft_core.policies import soup
from pft_core.policies.model import (
    SavedWeightsError,
    add_lora,
    load_base,
    load_policy,
    save_adapter,
    save_full,
)
from pft_core.policies.pretrained import load_tokenizer
from pft_core.policies.settings import LoraSettings
from pft_core.policies.soup import between, interpolate_adapters, interpolate_weights
from pft_core.scoring.scorer import BranchScorer
from tests.builders import random_trees

CPU = torch.device("cpu")
TARGETS = ["q_proj", "v_proj", "down_proj"]
WEIGHTS = (0.5, 0.3, 0.2)
# Each element of B is rounded once to float32 (by 2^-24 = 6e-8 of itself), and so is each term of delta W.
ROUNDING = 1e-6
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def load(folder: Path) -> Any:
    return load_base(str(folder), precision="fp32", gradient_checkpointing=False, device=CPU)


def noise(model: Any, seed: int) -> dict[str, Tensor]:
    """Noise for the trained weights, by name, as if they were trained."""
    generator = torch.Generator().manual_seed(seed)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return {name: torch.randn(weight.shape, generator=generator) * 0.1 for name, weight in trained.items()}


def write_adapter(base: Path, folder: Path, seed: int, *, r: int = 4, alpha: int = 8, targets: Any = TARGETS) -> Path:
    model = add_lora(load(base), LoraSettings(r=r, alpha=alpha, dropout=0.0, target_modules=targets), seed=seed)
    save_adapter(model, noise(model, seed), folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters of unequal ranks and scales: 8/4 = 2, 2/2 = 1, 4/8 = 0.5."""
    root = tmp_path_factory.mktemp("adapters")
    sizes = [(4, 8), (2, 2), (8, 4)]
    return [write_adapter(tiny_qwen2, root / f"{i}", i, r=r, alpha=a) for i, (r, a) in enumerate(sizes)]


@pytest.fixture(scope="module")
def models(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two fully fine-tuned models."""
    root = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        model = load(tiny_qwen2)
        save_full(model, load_tokenizer(str(tiny_qwen2)), noise(model, seed), root / f"{seed}")
    return [root / "0", root / "1"]


def changed_adapter(source: Path, folder: Path, **changes: Any) -> Path:
    """Copy an adapter with changes to its config."""
    folder.mkdir()
    config = json.loads((source / ADAPTER_FILES[0]).read_text()) | changes
    (folder / ADAPTER_FILES[0]).write_text(json.dumps(config))
    (folder / ADAPTER_FILES[1]).write_bytes((source / ADAPTER_FILES[1]).read_bytes())
    return folder


def changed_tensors(source: Path, folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """Copy an adapter with changed tensors."""
    changed_adapter(source, folder)
    save_file(change(load_file(source / ADAPTER_FILES[1])), folder / ADAPTER_FILES[1])
    return folder


def deltas(folder: Path) -> dict[str, Tensor]:
    """Return scale * B A by layer, from the definition of LoRA, in float64."""
    config, tensors = json.loads((folder / ADAPTER_FILES[0]).read_text()), load_file(folder / ADAPTER_FILES[1])
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    layers = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    pairs = {n: (tensors[f"{n}.lora_A.weight"].double(), tensors[f"{n}.lora_B.weight"].double()) for n in layers}
    return {name: scale * b @ a for name, (a, b) in pairs.items()}


def weighted_deltas(folders: list[Path], weights: tuple[float, ...]) -> dict[str, Tensor]:
    parts = [deltas(folder) for folder in folders]
    return {name: sum(w * part[name] for w, part in zip(weights, parts, strict=True)) for name in parts[0]}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, delta in expected.items():
        assert (actual[name] - delta).norm() <= ROUNDING * delta.norm(), name


def scores(model: Any) -> Tensor:
    with torch.no_grad():
        return BranchScorer(model.eval())(collate(random_trees(3)))


def parts_of(folders: list[Path], weights: tuple[float, ...]) -> list[tuple[Path, float]]:
    return list(zip(folders, weights, strict=True))


# --- between


def test_a_share_between_two_trained_ones_is_weighted_by_distance() -> None:
    # 0.125 is a quarter of the way from 0 to 0.5; 0.875 is three quarters of the way from 0.5 to 1.
    assert between(0.125, [0, 0.5, 1]) == ((0, 0.75), (0.5, 0.25))
    assert between(0.875, [0, 0.5, 1]) == ((0.5, 0.25), (1, 0.75))
    assert between(0.5, [0, 1]) == ((0, 0.5), (1, 0.5))


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_trained_share_has_all_of_the_weight(share: float) -> None:
    assert [knot for knot in between(share, [0, 0.5, 1]) if knot[1] > 0] == [(share, 1.0)]


@pytest.mark.parametrize(
    ("share", "knots", "message"),
    [
        (0.1, [0.25, 1], r"share=0\.1 is not between .* 0\.25 and 1"),
        (1.1, [0, 1], r"share=1\.1 is not between"),
        (math.nan, [0, 1], "share=nan is not between"),
        (0.5, [0.5], "1 trained shares"),
        (0.5, [], "0 trained shares"),
    ],
)
def test_a_share_that_cannot_be_interpolated_is_refused(share: float, knots: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        between(share, knots)


# --- adapters


def test_a_soup_of_adapters_is_pefts_concatenation(tiny_qwen2: Path, adapters: list[Path], tmp_path: Path) -> None:
    folder = interpolate_adapters(parts_of(adapters, WEIGHTS), tmp_path / "soup")
    model = PeftModel.from_pretrained(load(tiny_qwen2), str(adapters[0]), adapter_name="0")
    for name in ("1", "2"):
        model.load_adapter(str(adapters[int(name)]), adapter_name=name)
    model.base_model.add_weighted_adapter(["0", "1", "2"], list(WEIGHTS), "soup", combination_type="cat")
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    assert_close(deltas(folder), {name: layer.get_delta_weight("soup").double() for name, layer in layers.items()})


def test_a_soup_of_adapters_has_the_sum_of_their_changes(adapters: list[Path], tmp_path: Path) -> None:
    folder = interpolate_adapters(parts_of(adapters, WEIGHTS), tmp_path / "soup")
    assert_close(deltas(folder), weighted_deltas(adapters, WEIGHTS))
    config = json.loads((folder / ADAPTER_FILES[0]).read_text())
    assert (config["r"], config["lora_alpha"]) == (14, 14)  # 4 + 2 + 8
    assert {tensor.dtype for tensor in load_file(folder / ADAPTER_FILES[1]).values()} == {torch.float32}


def test_a_soup_of_adapters_scores_like_the_base_with_the_sum_added(
    tiny_qwen2: Path, adapters: list[Path], tmp_path: Path
) -> None:
    folder = interpolate_adapters(parts_of(adapters, WEIGHTS), tmp_path / "soup")
    model = load(tiny_qwen2)
    for name, delta in weighted_deltas(adapters, WEIGHTS).items():
        layer = model.get_submodule(name.removeprefix("base_model.model."))
        layer.weight.data = (layer.weight.double() + delta).float()
    reloaded = load_policy(str(tiny_qwen2), str(folder), None, precision="fp32", device=CPU)
    # One product with the sum and two summed products round differently, and log-probabilities here are some tens.
    torch.testing.assert_close(scores(reloaded), scores(model), rtol=1e-5, atol=1e-5)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(reloaded(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    assert (scores(reloaded) - scores(load(tiny_qwen2))).abs().max() > 0.1


def test_a_rank_stabilized_part_keeps_its_scale(adapters: list[Path], tmp_path: Path) -> None:
    # alpha / sqrt(r) = 8 / 2 = 4 instead of 8 / 4 = 2.
    stabilized = changed_adapter(adapters[0], tmp_path / "rs", use_rslora=True)
    folder = interpolate_adapters(parts_of([stabilized, adapters[1]], (0.5, 0.5)), tmp_path / "soup")
    assert_close(deltas(folder), weighted_deltas([stabilized, adapters[1]], (0.5, 0.5)))
    assert not json.loads((folder / ADAPTER_FILES[0]).read_text())["use_rslora"]


def test_the_same_parts_give_the_same_bytes(adapters: list[Path], tmp_path: Path) -> None:
    folders = [interpolate_adapters(parts_of(adapters, WEIGHTS), tmp_path / name) for name in ("one", "two")]
    for file in ADAPTER_FILES:
        assert file_sha256(folders[0] / file) == file_sha256(folders[1] / file)
    other = interpolate_adapters(parts_of(adapters, (0.5, 0.2, 0.3)), tmp_path / "other")
    assert file_sha256(other / ADAPTER_FILES[1]) != file_sha256(folders[0] / ADAPTER_FILES[1])


def test_a_lone_part_is_copied_and_parts_of_weight_0_are_not_read(adapters: list[Path], tmp_path: Path) -> None:
    folder = interpolate_adapters([(tmp_path / "nowhere", 0.0), (adapters[1], 1.0)], tmp_path / "soup")
    assert sorted(file.name for file in folder.iterdir()) == list(ADAPTER_FILES)
    for file in ADAPTER_FILES:
        assert (folder / file).read_bytes() == (adapters[1] / file).read_bytes()


def test_a_soup_replaces_an_older_one_and_the_leftovers_of_a_killed_call(adapters: list[Path], tmp_path: Path) -> None:
    for name in ("soup", ".soup.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    folder = interpolate_adapters(parts_of(adapters, WEIGHTS), tmp_path / "soup")
    assert sorted(file.name for file in folder.iterdir()) == list(ADAPTER_FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["soup"]


def test_a_soup_appears_whole_or_not_at_all(
    adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*args: Any) -> None:
        assert [path.name for path in tmp_path.rglob("*.safetensors")] == [ADAPTER_FILES[1]]
        assert contents(tmp_path) == []
        raise OSError("no space left")

    monkeypatch.setattr(soup, "write_json", full_disk)
    with pytest.raises(OSError, match="no space left"):
        interpolate_adapters(parts_of(adapters, WEIGHTS), tmp_path / "soup")
    assert not list(tmp_path.iterdir())


def test_a_file_that_reads_back_differently_is_noticed(
    adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        save_file({name: tensor * 0 for name, tensor in tensors.items()}, file, metadata)

    monkeypatch.setattr(soup, "save_file", faulty)
    with pytest.raises(SavedWeightsError, match="is not what was written"):
        interpolate_adapters(parts_of(adapters, WEIGHTS), tmp_path / "soup")
    assert not list(tmp_path.iterdir())


def test_a_sum_beyond_the_range_of_float32_is_noticed(adapters: list[Path], tmp_path: Path) -> None:
    loud = changed_adapter(adapters[0], tmp_path / "loud", lora_alpha=1e300)
    with pytest.raises(SavedWeightsError, match=r"lora_B\.weight exceeds the range of float32"):
        interpolate_adapters(parts_of([loud, adapters[1]], (0.5, 0.5)), tmp_path / "soup")


# --- refusals for adapters and models


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((0.5, 0.4), r"\[0\.5, 0\.4\] sum to 0\.9"),
        ((0.5, 0.500002), r"sum to 1\.000002"),
        ((1.5, -0.5), r"weight=-0\.5"),
        ((1.0, math.nan), "weight=nan"),
        ((1.0, math.inf), "weight=inf"),
        ((), "sum to 0"),
    ],
)
@pytest.mark.parametrize("interpolate", [interpolate_adapters, interpolate_weights])
def test_weights_that_are_not_an_interpolation_are_refused(
    interpolate: Any, weights: tuple[float, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        interpolate([(Path("part"), weight) for weight in weights], tmp_path / "soup")


def test_weights_written_with_few_digits_are_accepted(adapters: list[Path], tmp_path: Path) -> None:
    interpolate_adapters(parts_of(adapters, (0.3333333, 0.3333333, 0.3333333)), tmp_path / "soup")


def refuses_adapter(first: Path, odd: Path, message: str) -> None:
    """Check that both orders are refused with a message that names the odd one, and that nothing is left behind."""
    for pair in ([first, odd], [odd, first]):
        target = odd.parent / "soups" / "soup"
        with pytest.raises(UserError, match=message) as caught:
            interpolate_adapters(parts_of(pair, (0.5, 0.5)), target)
        assert str(odd) in str(caught.value)
        assert not target.parent.exists() or not list(target.parent.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern="),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern="),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"a_feature_of_tomorrow": 1}, "a_feature_of_tomorrow=1"),
        ({"peft_type": "LOHA"}, "peft_type is not LORA"),
        ({"r": 0}, "r=0 is not a number above 0"),
        ({"lora_alpha": None}, "lora_alpha=None is not a number"),
        ({"r": 3}, "not of rank r=3"),
        ({"base_model_name_or_path": "another"}, "base_model_name_or_path="),
        ({"revision": "v2"}, "revision="),
        ({"target_modules": ["q_proj"]}, "target_modules="),
        ({"fan_in_fan_out": True}, "fan_in_fan_out="),
    ],
)
def test_an_adapter_that_cannot_be_summed_is_refused(
    adapters: list[Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    refuses_adapter(adapters[0], changed_adapter(adapters[0], tmp_path / "odd", **changes), message)


def test_the_order_of_target_modules_does_not_matter(adapters: list[Path], tmp_path: Path) -> None:
    reversed_ = changed_adapter(adapters[1], tmp_path / "reversed", target_modules=TARGETS[::-1])
    interpolate_adapters(parts_of([adapters[0], reversed_], (0.5, 0.5)), tmp_path / "soup")


def one_missing(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(list(tensors.items())[1:])


def wider(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([t, t], dim=1) if ".lora_A." in name else t for name, t in tensors.items()}


def not_finite(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor / 0 for name, tensor in tensors.items()}


def with_a_magnitude(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"base_model.model.q_proj.lora_magnitude_vector": torch.ones(2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_missing, r"1 tensors differ, such as .*lora_A\.weight.*missing"),
        (wider, r"6 tensors differ, such as .*down_proj.*\[(64|128)\] and \[(64|128)\]"),  # 2 layers x 3 targets
        (not_finite, "infinite values or NaN"),
        (with_a_magnitude, "lora_magnitude_vector is not part of a plain LoRA"),
    ],
)
def test_tensors_that_cannot_be_summed_are_refused(
    adapters: list[Path], tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    refuses_adapter(adapters[0], changed_tensors(adapters[0], tmp_path / "odd", change), message)


@pytest.mark.parametrize("missing", ADAPTER_FILES)
def test_a_missing_adapter_file_is_named(adapters: list[Path], tmp_path: Path, missing: str) -> None:
    odd = changed_adapter(adapters[0], tmp_path / "odd")
    (odd / missing).unlink()
    refuses_adapter(adapters[0], odd, rf"{missing}: no such file")


def test_a_missing_adapter_is_named(adapters: list[Path], tmp_path: Path) -> None:
    refuses_adapter(adapters[0], tmp_path / "nowhere", "no such file")


def test_a_truncated_adapter_is_refused(adapters: list[Path], tmp_path: Path) -> None:
    odd = changed_adapter(adapters[0], tmp_path / "odd")
    (odd / ADAPTER_FILES[1]).write_bytes((odd / ADAPTER_FILES[1]).read_bytes()[:-100])
    refuses_adapter(adapters[0], odd, "not a complete safetensors file")


# --- fully fine-tuned models


def state(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def changed_model(source: Path, folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """Copy a model with changed tensors, in one shard."""
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(change(state(source)), folder / "model.safetensors")
    return folder


def test_a_soup_of_models_equals_the_average_by_hand(tiny_qwen2: Path, models: list[Path], tmp_path: Path) -> None:
    folder = interpolate_weights(parts_of(models, (0.25, 0.75)), tmp_path / "soup")
    first, second = state(models[0]), state(models[1])
    averaged = {name: (0.25 * first[name].double() + 0.75 * second[name].double()).float() for name in first}
    saved = state(folder)
    assert saved.keys() == averaged.keys()
    for name, weight in averaged.items():
        torch.testing.assert_close(saved[name], weight, rtol=ROUNDING, atol=1e-8)
    reloaded = load_policy(str(tiny_qwen2), None, str(folder), precision="fp32", device=CPU)
    by_hand = load(tiny_qwen2)
    by_hand.load_state_dict(averaged, strict=False)
    torch.testing.assert_close(scores(reloaded), scores(by_hand), rtol=1e-5, atol=1e-5)
    assert load_tokenizer(str(folder))("The town").input_ids == load_tokenizer(str(tiny_qwen2))("The town").input_ids


def test_a_soup_of_models_has_the_first_ones_files_and_is_reproducible(models: list[Path], tmp_path: Path) -> None:
    folders = [interpolate_weights(parts_of(models, (0.25, 0.75)), tmp_path / name) for name in ("one", "two")]
    names = sorted(file.name for file in models[0].iterdir())
    for folder in folders:
        assert sorted(file.name for file in folder.iterdir()) == names
    for name in names:
        assert file_sha256(folders[0] / name) == file_sha256(folders[1] / name)
        same = (folders[0] / name).read_bytes() == (models[0] / name).read_bytes()
        assert same == (not name.endswith(".safetensors"))


def test_a_soup_has_the_shards_of_the_first_model(models: list[Path], tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    model = AutoModelForCausalLM.from_pretrained(models[0])
    model.save_pretrained(sharded, max_shard_size="50KB")
    files = sorted(file.name for file in sharded.glob("*.safetensors"))
    assert len(files) > 1
    folder = interpolate_weights([(sharded, 0.25), (models[1], 0.75)], tmp_path / "soup")
    assert sorted(file.name for file in folder.glob("*.safetensors")) == files
    whole = interpolate_weights(parts_of(models, (0.25, 0.75)), tmp_path / "whole")
    assert all(torch.equal(weight, state(whole)[name]) for name, weight in state(folder).items())
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for file in files:
        assert load_file(folder / file).keys() == {name for name, place in index.items() if place == file}


def test_bfloat16_models_are_summed_in_float32(models: list[Path], tmp_path: Path) -> None:
    def filled(value: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        return lambda tensors: {n: torch.full_like(t, value, dtype=torch.bfloat16) for n, t in tensors.items()}

    parts = [changed_model(models[0], tmp_path / f"{i}", filled(value)) for i, value in enumerate((512, 4, 4))]
    folder = interpolate_weights(parts_of(parts, (0.5, 0.25, 0.25)), tmp_path / "soup")
    # 256 + 1 + 1 = 258. In bfloat16, the number after 256 is 258, so each rounded sum would stay at 256.
    for weight in state(folder).values():
        assert weight.dtype == torch.bfloat16
        assert (weight == 258).all()


def test_a_lone_model_is_copied(models: list[Path], tmp_path: Path) -> None:
    # A sum would be 1e-7 smaller.
    folder = interpolate_weights([(models[0], 0.9999999), (tmp_path / "nowhere", 0.0)], tmp_path / "soup")
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == {f.name: f.read_bytes() for f in models[0].iterdir()}


def first_tensor(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: change(t) if i == 0 else t for i, (name, t) in enumerate(tensors.items())}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_missing, "1 tensors differ"),
        (first_tensor(lambda t: t[:1].clone()), "1 tensors differ"),
        (first_tensor(lambda t: t / 0), "infinite values or NaN"),
        (first_tensor(lambda t: t.to(torch.int8)), "quantized"),
    ],
)
def test_models_that_cannot_be_summed_are_refused(
    models: list[Path], tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    odd = changed_model(models[1], tmp_path / "odd", change)
    with pytest.raises(UserError, match=message) as caught:
        interpolate_weights(parts_of([models[0], odd], (0.5, 0.5)), tmp_path / "soup")
    assert str(odd) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


def test_models_with_different_configs_are_refused(models: list[Path], tmp_path: Path) -> None:
    odd = changed_model(models[1], tmp_path / "odd", dict)
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"transformers_version": "0"}))
    interpolate_weights(parts_of([models[0], odd], (0.5, 0.5)), tmp_path / "soup")
    (odd / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(UserError, match=r"odd: rms_norm_eps=0\.5 in config"):
        interpolate_weights(parts_of([models[0], odd], (0.5, 0.5)), tmp_path / "soup")


def test_a_folder_that_is_not_a_model_is_refused(models: list[Path], tmp_path: Path) -> None:
    odd = changed_model(models[1], tmp_path / "odd", dict)
    file = odd / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"odd/model\.safetensors: not a complete"):
        interpolate_weights(parts_of([models[0], odd], (0.5, 0.5)), tmp_path / "soup")
    file.unlink()
    with pytest.raises(UserError, match=r"odd: no \*\.safetensors"):
        interpolate_weights(parts_of([models[0], odd], (0.5, 0.5)), tmp_path / "soup")
    with pytest.raises(UserError, match=r"nowhere/config\.json: no such file"):
        interpolate_weights(parts_of([models[0], tmp_path / "nowhere"], (0.5, 0.5)), tmp_path / "soup")
