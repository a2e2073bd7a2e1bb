"""Base model, tokenizer and LoRA: load, save, and reopen what was saved.

Weights that are trained are float32 (see engine.py): adapters always, the base only for full fine-tuning, where it is
loaded with precision="fp32". Code that ships inside a model folder is never run.
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
from pft_core.files import whole_folder
from pft_core.policies.pretrained import (
    first_line,
    load_errors,
    load_tokenizer,
    local_folder,
    place_of_model,
    public_name,
    refuse_tokens_beyond,
)
from pft_core.policies.row_positions import own_positions
from pft_core.policies.settings import LoraSettings, Precision

DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Values of init_lora_weights that leave the base alone; others, such as "pissa", take the start out of its weights.
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


class SavedWeightsError(UserError):
    """Weights that were just written, or an adapter that was just read, do not hold what they should."""


def load_base(
    name_or_path: str, *, precision: Precision, gradient_checkpointing: bool, device: torch.device
) -> PreTrainedModel:
    """Load a causal language model in the given precision. Raises UserError for a folder that cannot be one."""
    local_folder(name_or_path)
    with load_errors(name_or_path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place_of_model(name_or_path),
            dtype=DTYPES[precision],
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told: transformers' own error names none of them
        )
    model: Any = loaded[0]
    for name, saved, wanted in sorted(loaded[1]["mismatched_keys"])[:1]:
        raise UserError(
            f"model={name_or_path!r}: {name} has shape {tuple(saved)}, its config.json wants {tuple(wanted)}: copy the "
            "config and the weights of one model"
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
    """Run two tokens: what does not fit together in a config, such as heads that do not divide, shows here."""
    model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device))


def checkpoint_activations(model: Any) -> None:
    """Keep each layer's input only, and compute the rest again in the backward; with or without an adapter.

    The non-reentrant kind works with frozen embeddings and under ZeRO.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.gradient_checkpointing_enable({"use_reentrant": False})


def add_lora(model: PreTrainedModel, settings: LoraSettings, *, seed: int) -> PeftModel:
    """Freeze the model and put an adapter on it; its first weights depend on the seed alone.

    Raises UserError where a target module does not exist.
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
        # True keeps the adapter in float32 above a bfloat16 base: these are the weights that AdamW updates.
        try:
            adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
        except (ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:  # as peft sees fit
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
    """Raise UserError where the tokenizer knows tokens that the model has no embedding for."""
    refuse_tokens_beyond(tokenizer, model.get_input_embeddings().num_embeddings)


def save_adapter(model: PeftModel, state: dict[str, Tensor], folder: Path, *, updated: bool = True) -> None:
    """Write an adapter that peft can load, then reopen and check it.

    state: the trained weights by their names in `model`, as `Engine.gathered_state` returns them.
    updated: whether an update with a learning rate above zero has been made, so that lora_B is no longer zero.
    Raises SavedWeightsError where a key, a shape or a value of the written file is wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    file = folder / SAFETENSORS_WEIGHTS_NAME
    save_file({name: weight.contiguous() for name, weight in weights.items()}, file, metadata={"format": "pt"})
    config: Any = copy.copy(model.peft_config["default"])
    config.inference_mode = True
    config.base_model_name_or_path = public_name(config.base_model_name_or_path or "")
    # A set would be written in another order by every process, and the folder's hash with it.
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
    """Return name -> shape of the trained weights; ZeRO-3 keeps the whole weight's shape in `ds_shape`."""
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


def _difference(found: Iterable[str], expected: Iterable[str]) -> str:
    """Return "" for equal sets of names, else how many are missing or too many, with an example."""
    sides = {"missing": set(expected) - set(found), "surplus": set(found) - set(expected)}
    return " and ".join(f"{len(names)} {kind}, such as {min(names)}" for kind, names in sides.items() if names)


def load_policy(
    base: str, adapter: str | None, weights: str | None, *, precision: Precision, device: torch.device
) -> PreTrainedModel | PeftModel:
    """Load a policy for scoring: fully fine-tuned weights if given, else the base, with or without an adapter.

    Raises UserError where a folder is missing or the adapter does not fit the model.
    """
    model = load_base(weights or base, precision=precision, gradient_checkpointing=False, device=device)
    if adapter is None:
        model.eval()
        return model
    return with_adapter(model, Path(adapter)).to(device).eval()


def merge_adapter(base: str, adapter: Path, folder: Path) -> Path:
    """Write the base with the adapter's weights added to its own, and its tokenizer; return the folder.

    A policy that starts there has the trained one as its reference. Raises UserError where the adapter does not fit.
    """
    if folder.is_dir():
        return folder
    device = torch.device("cpu")
    model: Any = load_policy(base, str(adapter), None, precision="fp32", device=device)
    with whole_folder(folder) as unfinished:
        model.merge_and_unload().save_pretrained(unfinished)
        load_tokenizer(base).save_pretrained(unfinished)
    return folder


def with_adapter(model: PreTrainedModel | PeftModel, folder: Path, *, name: str = "default") -> PeftModel:
    """Put a saved adapter on a base model, or beside those that a model has. Raises UserError where it does not fit."""
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file() or not (folder / "adapter_config.json").is_file():
        raise UserError(f"adapter={str(folder)!r}: no {SAFETENSORS_WEIGHTS_NAME} with adapter_config.json there")
    try:
        difference = _change_of_base(config := PeftConfig.from_pretrained(str(folder)))
        if not difference:
            adapted = _with_layers(model, config, name)
            # peft only warns about keys that fit nothing, and writes those that fit the base into the base.
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
    """Return what of an adapter would change the base below it, which others use and which it is compared with."""
    start, bias = getattr(config, "init_lora_weights", True), getattr(config, "bias", "none")
    found = [] if start in PLAIN_STARTS else [f"init_lora_weights={start!r}"]
    found += [] if bias == "none" else [f"bias={bias!r}"]
    found += ["layer_replication"] if getattr(config, "layer_replication", None) else []
    return f"{' and '.join(found)} would change the base model's own weights: train it without" if found else ""


def _with_layers(model: PreTrainedModel | PeftModel, config: PeftConfig, name: str) -> PeftModel:
    """Put an adapter's layers in place; their weights are yet to come."""
    config.inference_mode = True
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        return model
    config.base_model_name_or_path = model.name_or_path  # else peft warns that the base was renamed
    adapted = get_peft_model(model, config, adapter_name=name)
    assert isinstance(adapted, PeftModel)
    return adapted
