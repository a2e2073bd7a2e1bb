"""Loading, saving and reopening models and adapters, on tiny Qwen2 and Llama folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from pft_core.encoding.batching import collate
from pft_core.errors import UserError
from pft_core.policies.model import (
    SavedWeightsError,
    add_lora,
    load_base,
    load_policy,
    refuse_foreign_tokenizer,
    save_adapter,
    save_full,
    trained_shapes,
    with_adapter,
)
from pft_core.policies.pretrained import load_tokenizer, refuse_missing_tokenizer
from pft_core.policies.settings import LoraSettings
from pft_core.scoring.scorer import BranchScorer
from tests.builders import random_trees

CPU = torch.device("cpu")
LORA = LoraSettings(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "v_proj"])


@pytest.fixture(params=["tiny_qwen2", "tiny_llama"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def base(folder: Path, **changes):
    return load_base(str(folder), **({"precision": "fp32", "gradient_checkpointing": False, "device": CPU} | changes))


def trained_state(model) -> dict[str, Tensor]:
    """Weights as if trained: every trained weight filled with noise."""
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def scores(model) -> Tensor:
    with torch.no_grad():
        return BranchScorer(model.eval())(collate(random_trees(3)))


def test_the_base_has_the_requested_precision_and_the_folders_weights(folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(scores(base(folder)), scores(plain))
    assert {p.dtype for p in base(folder, precision="bf16").parameters()} == {torch.bfloat16}


def test_gradient_checkpointing_is_switched_on(folder: Path) -> None:
    assert base(folder, gradient_checkpointing=True).is_gradient_checkpointing


def test_a_new_adapter_changes_no_score_and_trains_nothing_else(folder: Path) -> None:
    model = add_lora(base(folder), LORA, seed=1)
    assert torch.equal(scores(model), scores(base(folder)))
    # 2 layers x (q_proj, v_proj) x (A, B)
    assert len(trained_shapes(model)) == 8
    assert all(".lora_" in name for name in trained_shapes(model))


def test_the_initial_adapter_depends_only_on_its_seed(folder: Path) -> None:
    def lora_a(seed: int, disturbance: int) -> Tensor:
        torch.manual_seed(disturbance)
        state = add_lora(base(folder), LORA, seed=seed).state_dict()
        assert torch.initial_seed() == disturbance
        return torch.cat([w.flatten() for n, w in state.items() if ".lora_A." in n])

    assert torch.equal(lora_a(1, 10), lora_a(1, 20))
    assert not torch.equal(lora_a(1, 10), lora_a(2, 10))


def test_adapters_are_float32_on_a_bf16_base(folder: Path) -> None:
    model = add_lora(base(folder, precision="bf16"), LORA, seed=1)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("targets", [["q_porj"], ["q_proj", "query"]])
def test_the_error_for_unknown_target_modules_names_those_that_exist(folder: Path, targets: list[str]) -> None:
    with pytest.raises(UserError, match=rf"{targets[-1]}.*q_proj"):
        add_lora(base(folder), LoraSettings(r=4, alpha=8, dropout=0.0, target_modules=targets), seed=1)


def test_all_linear_leaves_the_head_alone(folder: Path) -> None:
    model = add_lora(base(folder), LoraSettings(r=4, alpha=8, dropout=0.0, target_modules="all-linear"), seed=1)
    # 2 layers x (q, k, v, o, gate, up, down) x (A, B)
    assert len(trained_shapes(model)) == 28


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_saved_adapter_scores_like_the_trained_one(folder: Path, tmp_path: Path, precision: str) -> None:
    model = add_lora(base(folder, precision=precision), LORA, seed=1)
    save_adapter(model, trained_state(model), tmp_path / "adapter")
    policy = load_policy(str(folder), str(tmp_path / "adapter"), None, precision=precision, device=CPU)
    assert torch.equal(scores(policy), scores(model))
    assert not torch.equal(scores(policy), scores(base(folder, precision=precision)))


def test_an_adapter_is_written_with_the_same_bytes_twice(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        model = add_lora(base(folder), LoraSettings(r=4, alpha=8, dropout=0.0, target_modules="all-linear"), seed=1)
        save_adapter(model, trained_state(model), tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    # peft keeps a set, and the order of a set differs between processes.
    targets = json.loads((tmp_path / "one" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)


def empty(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {}


def one_missing(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(list(state.items())[1:])


def one_shard(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight[:0] for name, weight in state.items()}


def not_finite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight / 0 for name, weight in state.items()}


def untrained(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight * (".lora_A." in name) for name, weight in state.items()}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (empty, "empty"),
        (one_missing, "1 missing, such as .*lora_A"),
        (one_shard, "has shape"),
        (not_finite, "infinite values or NaN"),
        (untrained, "every lora_B is zero"),
    ],
)
def test_a_faulty_adapter_is_noticed_when_it_is_saved(tiny_qwen2: Path, tmp_path: Path, fault, message: str) -> None:
    model = add_lora(base(tiny_qwen2), LORA, seed=1)
    with pytest.raises(SavedWeightsError, match=message) as caught:
        save_adapter(model, fault(trained_state(model)), tmp_path)
    assert "last checkpoint" in str(caught.value)


def test_an_adapter_without_an_update_may_have_zero_b(tiny_qwen2: Path, tmp_path: Path) -> None:
    model = add_lora(base(tiny_qwen2), LORA, seed=1)
    save_adapter(model, untrained(trained_state(model)), tmp_path, updated=False)


def test_a_saved_full_model_scores_like_the_trained_one(folder: Path, tmp_path: Path) -> None:
    model = base(folder)
    save_full(model, load_tokenizer(str(folder)), trained_state(model), tmp_path)
    policy = load_policy(str(folder), None, str(tmp_path), precision="fp32", device=CPU)
    assert torch.equal(scores(policy), scores(model))
    assert load_tokenizer(str(tmp_path))("The town").input_ids == load_tokenizer(str(folder))("The town").input_ids


def test_a_full_model_with_a_missing_weight_is_noticed_when_it_is_saved(folder: Path, tmp_path: Path) -> None:
    model = base(folder)
    with pytest.raises(SavedWeightsError, match="1 missing"):
        save_full(model, load_tokenizer(str(folder)), one_missing(trained_state(model)), tmp_path)


def test_an_adapter_of_another_model_is_refused(tiny_qwen2: Path, tmp_path: Path) -> None:
    model = add_lora(base(tiny_qwen2), LORA, seed=1)
    save_adapter(model, trained_state(model), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name.replace(".layers.1.", ".layers.7."): w for name, w in load_file(file).items()}, file)
    with pytest.raises(UserError, match="does not fit"):
        load_policy(str(tiny_qwen2), str(tmp_path), None, precision="fp32", device=CPU)


@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "a/b/c"])
def test_a_missing_folder_is_named(path: str) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(path)
    with pytest.raises(UserError, match="no such folder"):
        load_base(path, precision="fp32", gradient_checkpointing=False, device=CPU)


def test_a_missing_adapter_is_named(tiny_qwen2: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        load_policy(str(tiny_qwen2), str(tmp_path), None, precision="fp32", device=CPU)


def folder_without(folder: Path, target: Path, *names: str) -> str:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*names))
    return str(target)


def test_a_folder_without_tokenizer_is_refused(tiny_qwen2: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no tokenizer"):
        load_tokenizer(folder_without(tiny_qwen2, tmp_path / "m", "tokenizer*"))


def test_a_folder_with_missing_or_truncated_weights_is_refused(tiny_qwen2: Path, tmp_path: Path) -> None:
    bare = Path(folder_without(tiny_qwen2, tmp_path / "m", "*.safetensors"))
    with pytest.raises(UserError, match="cannot be loaded"):
        base(bare)
    (bare / "model.safetensors").write_bytes((tiny_qwen2 / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be loaded"):
        base(bare)


def test_a_folder_with_one_missing_weight_is_refused(tiny_qwen2: Path, tmp_path: Path) -> None:
    partial = Path(folder_without(tiny_qwen2, tmp_path / "m"))
    weights = load_file(partial / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights, such as model\.norm\.weight"):
        base(partial)


def test_remote_code_is_refused_and_never_run(tiny_qwen2: Path, tmp_path: Path) -> None:
    odd = Path(folder_without(tiny_qwen2, tmp_path / "m"))
    config = {"model_type": "odd", "auto_map": {"AutoConfig": "odd.Config", "AutoModelForCausalLM": "odd.Model"}}
    (odd / "config.json").write_text(json.dumps(config))
    (odd / "odd.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(UserError, match="never run"):
        base(odd)


def test_a_model_of_another_kind_is_refused(tiny_qwen2: Path, tmp_path: Path) -> None:
    other = Path(folder_without(tiny_qwen2, tmp_path / "m"))
    (other / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UserError, match="causal language model"):
        base(other)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tiny_qwen2: Path) -> None:
    model, tokenizer = base(tiny_qwen2), load_tokenizer(str(tiny_qwen2))
    refuse_foreign_tokenizer(model, tokenizer)
    model.resize_token_embeddings(100)
    with pytest.raises(UserError, match="the model has 100 embeddings"):
        refuse_foreign_tokenizer(model, tokenizer)


def test_a_model_that_transformers_supports_is_also_refused_if_it_names_its_own_code(
    tiny_qwen2: Path, tmp_path: Path
) -> None:
    folder = Path(folder_without(tiny_qwen2, tmp_path / "m"))
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    for load in (base, lambda path: load_tokenizer(str(path))):
        with pytest.raises(UserError, match=r"auto_map in config\.json"):
            load(folder)


MISFITS = {
    "hidden_size": (48, r"has shape \(600, 32\), but config\.json expects \(600, 48\)"),
    "vocab_size": (100, r"has shape \(600, 32\), but config\.json expects \(100, 32\)"),
    "num_key_value_heads": (4, r"k_proj\.\w+ has shape \(16,?.*\), but config\.json expects \(32,?.*\)"),
    "num_attention_heads": (5, r"hidden size \(32\) is not a multiple of the number of attention heads \(5\)"),
    "hidden_act": ("nope", "KeyError: 'nope'"),
    "rope_parameters": ({"rope_type": "foo"}, "KeyError: 'foo'"),
    "head_dim": (0, "ZeroDivisionError"),
}


@pytest.mark.parametrize("key", MISFITS)
def test_the_error_for_a_config_that_does_not_fit_its_weights_names_both(tiny_llama: Path, tmp_path, key) -> None:
    value, message = MISFITS[key]
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "m"))
    known = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(known | {key: value}))
    with pytest.raises(UserError, match=message) as caught:
        base(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_heads_that_do_not_divide_are_noticed_when_the_model_is_loaded(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 50}
    LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=3, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"cannot be loaded as a causal language model \(.* must match"):
        base(tmp_path)


def test_a_damaged_tokenizer_file_is_a_user_error(tiny_qwen2: Path, tmp_path: Path) -> None:
    not_objects = [("tokenizer_config.json", "[]"), ("tokenizer_config.json", "null"), ("config.json", "3")]
    for number, (name, text) in enumerate([("tokenizer.json", "{}"), ("tokenizer.json", "[" * 100_000), *not_objects]):
        copy = Path(shutil.copytree(tiny_qwen2, tmp_path / f"{number}"))
        (copy / name).write_text(text)
        with pytest.raises(UserError, match=r"cannot be loaded as a tokenizer|not a JSON object"):
            load_tokenizer(str(copy))


def test_an_added_token_without_an_embedding_is_refused_by_tokenizer_and_model(
    tiny_qwen2: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_qwen2, tmp_path / "m"))
    tokenizer, model = load_tokenizer(str(copy)), base(copy)
    number = len(tokenizer)
    model.resize_token_embeddings(number)
    tokenizer.add_tokens(["<|pref|>"], special_tokens=True)
    message = rf"the model has {number} embeddings \('<\|pref\|>' has id {number}\): use the model's own tokenizer, or"
    with pytest.raises(UserError, match=message):
        refuse_foreign_tokenizer(model, tokenizer)
    model.save_pretrained(copy)
    tokenizer.save_pretrained(copy)
    for check in (refuse_missing_tokenizer, load_tokenizer):  # the first only reads files
        with pytest.raises(UserError, match=message):
            check(str(copy))
    model.resize_token_embeddings(number + 1)
    model.save_pretrained(copy)
    refuse_foreign_tokenizer(base(copy), load_tokenizer(str(copy)))


@pytest.fixture
def gpt2(tiny_qwen2: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=600, n_embd=32, n_layer=2, n_head=4)).save_pretrained(tmp_path / "gpt2")
    load_tokenizer(str(tiny_qwen2)).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


@pytest.mark.parametrize("targets", [["c_attn"], ["c_fc", "h.0.attn.c_proj"], "all-linear"])
def test_an_adapter_on_gpt2s_own_type_of_linear_layer_can_be_reloaded(gpt2: Path, tmp_path, targets) -> None:
    model = add_lora(base(gpt2), LoraSettings(r=4, alpha=8, dropout=0.0, target_modules=targets), seed=1)
    save_adapter(model, trained_state(model), tmp_path / "adapter")
    opened = load_policy(str(gpt2), str(tmp_path / "adapter"), None, precision="fp32", device=CPU)
    assert torch.equal(scores(opened), scores(model))
    assert not torch.equal(scores(opened), scores(base(gpt2)))


def test_an_adapter_that_peft_refuses_is_a_user_error_that_names_the_key(tmp_path: Path) -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(UserError, match=r"lora: peft cannot put an adapter on 'mamba' .*: change lora\.target_modules"):
        add_lora(model, LoraSettings(target_modules=["out_proj"]), seed=0)


@pytest.mark.parametrize(
    "changes",
    [{"r": "x"}, {"peft_type": "NOPE"}, {"peft_type": "PROMPT_TUNING"}, {"target_modules": 5}, {"r": 8}, None],
)
def test_an_adapter_with_a_damaged_config_does_not_fit(tiny_qwen2: Path, tmp_path: Path, changes) -> None:
    model = add_lora(base(tiny_qwen2), LORA, seed=1)
    save_adapter(model, trained_state(model), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps([] if changes is None else json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match="does not fit") as caught:
        load_policy(str(tiny_qwen2), str(tmp_path), None, precision="fp32", device=CPU)
    assert "\n" not in str(caught.value)


def base_weights(model: Any) -> dict[str, Tensor]:
    return {n.replace(".base_layer.", "."): w for n, w in model.state_dict().items() if ".lora_" not in n}


def a_base_weight(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    own = "base_model.model.model.layers.0.mlp.up_proj.weight"
    save_file(load_file(file) | {own: torch.zeros(64, 32)}, file)


def config_of(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(config_of(init_lora_weights=start) for start in ("pissa", "pissa_niter_4", "olora", "OLoRA", "a_later_one")),
        config_of(bias="all"),
        config_of(layer_replication=[[0, 2], [1, 2]]),
        a_base_weight,
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_an_adapter_that_would_change_the_base_is_refused_and_leaves_it_unchanged(
    tiny_qwen2: Path, tmp_path: Path, change: Any, beside: bool
) -> None:
    model: Any = base(tiny_qwen2)
    untouched = {name: weight.clone() for name, weight in base_weights(model).items()}
    adapted = add_lora(model, LORA, seed=1)
    save_adapter(adapted, trained_state(adapted), tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match="does not fit"):
        with_adapter(adapted if beside else adapted.unload(), tmp_path, name="another")
    after = base_weights(model)
    assert after.keys() == untouched.keys()
    assert all(torch.equal(after[name], weight) for name, weight in untouched.items())
