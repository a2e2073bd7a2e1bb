"""Load and save base models and LoRA adapters, and check what was saved.

Trained weights are float32 (see engine.py): adapters always are; the base is loaded with precision="fp32" for full
fine-tuning only. Code inside a model folder is never run.
"""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from pft_core.errors import UserError
from pft_core.policies.pretrained import (
    first_line,
    load_errors,
    local_folder,
    place_of_model,
    public_name,
    refuse_tokens_beyond,
)
from pft_core.policies.row_positions import own_positions
from pft_core.policies.settings import LoraSettings, Precision

DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Values of init_lora_weights that leave the base unchanged; others, such as "pissa", subtract the start from it.
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


class SavedWeightsError(UserError):
    """Saved weights that do not hold what they should, noticed when they are reopened."""


def load_base(
    name_or_path: str, *, precision: Precision, gradient_checkpointing: bool, device: torch.device
) -> PreTrainedModel:
    """Load a causal language model in this precision. Raises UserError if it cannot be loaded or run."""
    local_folder(name_or_path)
    with load_errors(name_or_path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place_of_model(name_or_path),
            dtype=DTYPES[precision],
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below, as transformers' own error names none of them
        )
    model: Any = loaded[0]
    for name, saved, expected in sorted(loaded[1]["mismatched_keys"])[:1]:
        raise UserError(
            f"model={name_or_path!r}: {name} has shape {tuple(saved)}, but config.json expects {tuple(expected)}: copy "
            "the config and the weights of the same model"
        )
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise UserError(f"model={name_or_path!r} lacks {len(missing)} weights, such as {missing[0]}: copy it again")
    if gradient_checkpointing:
        checkpoint_activations(model)
    base: PreTrainedModel = model.to(device)
    own_positions(base)
    with load_errors(name_or_path):
        _run_once(base)
    return base


@torch.no_grad()
def _run_once(model: Any) -> None:
    """Run two tokens, which fails for an inconsistent config, such as one with heads that do not divide."""
    model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device))


def checkpoint_activations(model: Any) -> None:
    """Keep only each layer's input, and recompute the rest in the backward pass; the model may have an adapter.

    Non-reentrant checkpointing works with frozen embeddings and under ZeRO.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.gradient_checkpointing_enable({"use_reentrant": False})


def add_lora(model: PreTrainedModel, settings: LoraSettings, *, seed: int) -> PeftModel:
    """Freeze the model and add an adapter, whose initial weights depend only on the seed.

    Raises UserError if a target module does not exist or peft refuses the adapter.
    """
    _require_targets(model, settings.target_modules)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # True keeps the adapter in float32 on a bfloat16 base, as AdamW updates these weights.
        try:
            adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
        except (ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:  # peft raises any of them
            raise UserError(
                f"lora: peft cannot put an adapter on {model.config.model_type!r} ({first_line(error)}): change "
                "lora.target_modules"
            ) from None
    assert isinstance(adapted, PeftModel)
    return adapted


def _require_targets(model: PreTrainedModel, targets: list[str] | str) -> None:
    if targets == "all-linear":
        return
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise UserError(
                f"lora.target_modules={target!r} matches no layer of {model.config.model_type!r}; "
                f'its linear layers are {", ".join(known)} (or use "all-linear")'
            )


def refuse_foreign_tokenizer(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if the tokenizer has tokens for which the model has no embedding."""
    refuse_tokens_beyond(tokenizer, model.get_input_embeddings().num_embeddings)


def save_adapter(model: PeftModel, state: dict[str, Tensor], folder: Path, *, updated: bool = True) -> None:
    """Write an adapter that peft can load, then reopen and check it.

    state: the trained weights by their names in `model`, as `Engine.gathered_state` returns them.
    updated: whether training has made an update with a learning rate above zero, so that lora_B is no longer zero.
    Raises SavedWeightsError if a key, a shape or a value in the written file is wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    file = folder / SAFETENSORS_WEIGHTS_NAME
    save_file({name: weight.contiguous() for name, weight in weights.items()}, file, metadata={"format": "pt"})
    config: Any = copy.copy(model.peft_config["default"])
    config.inference_mode = True
    config.base_model_name_or_path = public_name(config.base_model_name_or_path or "")
    # Each process would write a set in a different order, and the folder's hash would differ.
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))
    expected = {name.replace(".default.", "."): shape for name, shape in trained_shapes(model).items()}
    saved = load_file(file)
    _check_saved(file, saved, expected)
    if updated and not any(weight.any() for name, weight in saved.items() if ".lora_B." in name):
        raise _saved_wrongly(file, "every lora_B is zero, so the adapter changes nothing")


def save_full(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, state: dict[str, Tensor], folder: Path
) -> None:
    """Write a fully fine-tuned model with its tokenizer, then reopen and check it. Raises SavedWeightsError."""
    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(state, folder)
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    saved: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        saved |= load_file(file)
    _check_saved(folder, saved, trained_shapes(model))


def trained_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of the trained weights by name. ZeRO-3 keeps the shape of a whole weight in `ds_shape`."""
    return {n: torch.Size(getattr(p, "ds_shape", p.shape)) for n, p in model.named_parameters() if p.requires_grad}


def _check_saved(place: Path, saved: dict[str, Tensor], expected: dict[str, torch.Size]) -> None:
    if not saved:
        raise _saved_wrongly(place, "it is empty")
    if saved.keys() != expected.keys():
        raise _saved_wrongly(place, _difference(saved, expected))
    for name, weight in saved.items():
        if weight.shape != expected[name]:
            raise _saved_wrongly(place, f"{name} has shape {tuple(weight.shape)}, not {tuple(expected[name])}")
        if not weight.isfinite().all():
            raise _saved_wrongly(place, f"{name} holds infinite values or NaN")


def _saved_wrongly(place: Path, fault: str) -> SavedWeightsError:
    return SavedWeightsError(
        f"{place}: the weights just saved are not usable: {fault}. Do not serve them; run the same command again to "
        "continue from the last checkpoint, with engine.zero_stage=2 if it was 3"
    )


def _difference(names: Iterable[str], expected: Iterable[str]) -> str:
    """Return an empty string for equal sets of names, else the numbers of missing and surplus names with an example."""
    groups = {"missing": set(expected) - set(names), "surplus": set(names) - set(expected)}
    return " and ".join(f"{len(group)} {kind}, such as {min(group)}" for kind, group in groups.items() if group)


def load_policy(
    base: str, adapter: str | None, weights: str | None, *, precision: Precision, device: torch.device
) -> PreTrainedModel | PeftModel:
    """Load a policy for scoring: fully fine-tuned weights if there are any, else the base, with or without an adapter.

    Raises UserError if a folder is missing or the adapter does not fit the model.
    """
    model = load_base(weights or base, precision=precision, gradient_checkpointing=False, device=device)
    if adapter is None:
        model.eval()
        return model
    return with_adapter(model, Path(adapter)).to(device).eval()


def with_adapter(model: PreTrainedModel | PeftModel, folder: Path, *, name: str = "default") -> PeftModel:
    """Add a saved adapter to a base model, beside any others it has. Raises UserError if the adapter does not fit."""
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file() or not (folder / "adapter_config.json").is_file():
        raise UserError(
            f"adapter={str(folder)!r}: no {SAFETENSORS_WEIGHTS_NAME} with adapter_config.json there: give a folder "
            "written by `pft train` or by peft"
        )
    try:
        difference = _change_of_base(config := PeftConfig.from_pretrained(str(folder)))
        if not difference:
            adapted = _with_layers(model, config, name)
            # peft only warns about unknown keys, and loads keys that match the base into the base.
            expected = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
            difference = _difference(load_file(file), expected)
        if not difference:
            adapted.load_adapter(str(folder), adapter_name=name, is_trainable=False)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, SafetensorError) as error:
        if "out of memory" in str(error):
            raise
        difference = first_line(error)
    if difference:
        raise UserError(f"adapter={str(folder)!r} does not fit {model.name_or_path!r}: {difference}")
    return adapted


def _change_of_base(config: PeftConfig) -> str:
    """Return the settings of an adapter that would change its base, which other policies share; "" if none would."""
    start, bias = getattr(config, "init_lora_weights", True), getattr(config, "bias", "none")
    settings = [] if start in PLAIN_STARTS else [f"init_lora_weights={start!r}"]
    settings += [] if bias == "none" else [f"bias={bias!r}"]
    settings += ["layer_replication"] if getattr(config, "layer_replication", None) else []
    return f"{' and '.join(settings)} would change the base model's own weights: train without" if settings else ""


def _with_layers(model: PreTrainedModel | PeftModel, config: PeftConfig, name: str) -> PeftModel:
    """Add an adapter's layers to a model, without loading their weights."""
    config.inference_mode = True
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        return model
    config.base_model_name_or_path = model.name_or_path  # otherwise peft warns that the base was renamed
    adapted = get_peft_model(model, config, adapter_name=name)
    assert isinstance(adapted, PeftModel)
    return adapted
