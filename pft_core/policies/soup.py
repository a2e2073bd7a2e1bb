"""Soups: policies between trained ones, made by averaging their weights without further training.

Interpolating between trained policies saves trainings when two goals are traded off (Rame et al. 2023, Rewarded soups,
arXiv 2306.04488). Only a measurement can tell whether a soup is as good as a policy trained at its ratio.
Soups read only safetensors and JSON files, never a base model, so that a server can make one on request.
"""

import bisect
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pft_core.errors import UserError
from pft_core.files import read_json, whole_folder, write_json
from pft_core.policies.model import PLAIN_STARTS, SavedWeightsError

SUM_TOLERANCE = 1e-6  # the weights are often written with few digits

_OFF: tuple[Any, ...] = (None, False, "none", {}, [])
# Fields of an adapter's config that do not affect delta W, or that this module handles. Any other field that is on,
# including those of later peft versions, is taken for a feature under which delta W is more than scale * B A.
# fmt: off
_UNDERSTOOD = frozenset((
    "r", "lora_alpha", "use_rslora", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "base_model_name_or_path", "revision", "fan_in_fan_out", "peft_type", "peft_version", "task_type",
    "auto_mapping", "inference_mode", "loftq_config", "corda_config", "eva_config", "lora_ga_config",
    "qalora_group_size", "megatron_core",
))
# fmt: on
_SAME_FOR_ALL = ("base_model_name_or_path", "revision", "target_modules", "fan_in_fan_out")
_ONE_BASE = "the parts of a soup must be trained from one base, with the same target_modules"
_FREE_IN_MODEL_CONFIGS = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")


def between(share: float, knots: Sequence[float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the two trained shares around a share, the lower one first, each with its weight for linear interpolation.

    share: alpha / (alpha + beta), in [0, 1]. knots: the trained shares, in ascending order. A trained share gets
    weight 1. Raises UserError for fewer than two knots, or a share outside them.
    """
    assert all(low < high for low, high in pairwise(knots)), "knots must ascend"
    if len(knots) < 2:
        raise UserError(f"{len(knots)} trained shares: a soup needs at least 2 (such as 0 and 1)")
    if not knots[0] <= share <= knots[-1]:
        raise UserError(
            f"share={share} is not between the trained shares {knots[0]} and {knots[-1]}: train at this share, or at "
            "one beyond it"
        )
    after = bisect.bisect_right(knots, share, hi=len(knots) - 1)
    low, high = knots[after - 1], knots[after]
    weight = (share - low) / (high - low)
    return (low, 1 - weight), (high, weight)


def interpolate_adapters(parts: Sequence[tuple[Path, float]], folder: Path) -> Path:
    """Write the adapter whose delta W is the weighted sum of the parts' delta W; return its folder.

    With delta W_i = s_i B_i A_i, the matrices [A_1; A_2] and [w_1 s_1 B_1, w_2 s_2 B_2] with scale 1 give the sum for
    any ranks and scales; averaging A and B would not. In float32, each element of B is rounded once. Parts of weight 0
    are not read; if only one part remains, it is copied. The same parts give the same bytes. An existing folder is
    replaced. Raises UserError if the weights are not an interpolation, or if parts are missing, damaged, not plain LoRA
    or of different models; SavedWeightsError if the written file does not hold the sum.
    """
    used = _used(parts)
    adapters = [_read_adapter(path) for path, _ in used]
    for other in adapters[1:]:
        _refuse_other_adapter(adapters[0], other)
    with whole_folder(folder) as unfinished:
        if len(used) == 1:
            for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
                shutil.copyfile(used[0][0] / name, unfinished / name)
        else:
            factors = [weight * adapter.scale for adapter, (_, weight) in zip(adapters, used, strict=True)]
            tensors = {name: _joined(name, adapters, factors) for name in adapters[0].tensors}
            _write(unfinished / SAFETENSORS_WEIGHTS_NAME, tensors)
            write_json(unfinished / CONFIG_NAME, _joined_config(adapters))
    return folder


def interpolate_weights(parts: Sequence[tuple[Path, float]], folder: Path) -> Path:
    """Write the model whose weights are the weighted sum of those of fully fine-tuned parts; return its folder.

    Sums are computed in float32, and written in the dtype and shards of the first part, one shard at a time. The other
    files of the first part are copied. Everything else, including errors, is as in `interpolate_adapters`; the values
    of a part that is only copied are not checked.
    """
    used = _used(parts)
    models = [_read_model(path) for path, _ in used]
    for other in models[1:]:
        _refuse_other_model(models[0], other)
    with whole_folder(folder) as unfinished:
        if len(used) == 1:
            shutil.copytree(used[0][0], unfinished, dirs_exist_ok=True)
        else:
            _write_average(models, [weight for _, weight in used], unfinished)
    return folder


def _used(parts: Sequence[tuple[Path, float]]) -> list[tuple[Path, float]]:
    """Return the parts with a weight above 0. Raises UserError if the weights are not an interpolation."""
    for path, weight in parts:
        if not 0 <= weight < math.inf:
            raise UserError(f"soup: weight={weight} of {path}: give a number from 0 to 1")
    total = math.fsum(weight for _, weight in parts)
    if abs(total - 1) > SUM_TOLERANCE:
        raise UserError(f"soup: the weights {[weight for _, weight in parts]} sum to {total:.7g}: they must sum to 1")
    return [(path, weight) for path, weight in parts if weight > 0]


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors, then reopen the file and check that it holds them, all finite. Raises SavedWeightsError."""
    # One entry of metadata: safetensors writes several in an order that differs between processes.
    save_file(tensors, file, metadata={"format": "pt"})
    saved = load_file(file)
    for name, tensor in tensors.items():
        if name not in saved or not torch.equal(saved[name], tensor):
            raise SavedWeightsError(f"{file}: {name} is not what was written: check the disk, then try again")
        if not tensor.isfinite().all():
            raise SavedWeightsError(f"{file}: {name} exceeds the range of float32: lower lora_alpha of the parts")


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; a soup needs the whole folder of a trained policy") from None
    except SafetensorError as error:
        raise UserError(f"{file}: not a complete safetensors file ({error}): copy it again") from None


def _refuse_not_finite(file: Path, name: str, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        raise UserError(f"{file}: {name} holds infinite values or NaN: train that policy again")


# --- adapters


@dataclass(frozen=True)
class _Adapter:
    """A LoRA adapter's files, read and checked."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def scale(self) -> float:
        """The factor of B A: alpha / r, or alpha / sqrt(r) with use_rslora."""
        rank = self.config["r"]
        return float(self.config["lora_alpha"] / (math.sqrt(rank) if self.config.get("use_rslora") else rank))


def _rank_axis(name: str) -> int:
    """Return the axis of the rank: A is [rank, in], B is [out, rank]."""
    return 0 if name.endswith(".lora_A.weight") else 1


def _read_adapter(folder: Path) -> _Adapter:
    config = read_json(folder / CONFIG_NAME, what="the config of a LoRA adapter")
    _refuse_special_config(folder / CONFIG_NAME, config)
    file = folder / SAFETENSORS_WEIGHTS_NAME
    with _damage_named(file):
        tensors = load_file(file)
    for name, tensor in tensors.items():
        _refuse_special_tensor(file, name, tensor, config["r"])
        _refuse_not_finite(file, name, tensor)
    return _Adapter(folder, config, tensors)


def _refuse_special_config(file: Path, config: Any) -> None:
    """Raise UserError for an adapter whose delta W is not scale * B A with one rank and one scale."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{file}: not a LoRA adapter (peft_type is not LORA): a soup of adapters needs LoRA")
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), int | float) or config[name] <= 0:
            raise UserError(f"{file}: {name}={config.get(name)!r} is not a number above 0: copy the adapter again")
    for name, value in config.items():
        plain = name == "init_lora_weights" and value in PLAIN_STARTS
        if value not in _OFF and name not in _UNDERSTOOD and not plain:
            raise UserError(f"{file}: {name}={value!r}: adapters with it cannot be summed: train without it")


def _refuse_special_tensor(file: Path, name: str, tensor: Tensor, rank: int) -> None:
    if not name.endswith((".lora_A.weight", ".lora_B.weight")):
        raise UserError(f"{file}: {name} is not part of a plain LoRA adapter: train without it")
    if tensor.ndim != 2 or tensor.shape[_rank_axis(name)] != rank:
        raise UserError(f"{file}: {name} has shape {tuple(tensor.shape)}, which is not of rank r={rank}: copy it again")


def _refuse_other_adapter(first: _Adapter, other: _Adapter) -> None:
    """Raise UserError if two adapters do not belong to the same layers of the same base."""
    for name in _SAME_FOR_ALL:
        values = [adapter.config.get(name) for adapter in (first, other)]
        if _unordered(values[0]) != _unordered(values[1]):
            raise UserError(f"{other.folder}: {name}={values[1]!r}, but {first.folder} has {values[0]!r}: {_ONE_BASE}")
    _refuse_other_shapes(first.folder, _fixed_shapes(first), other.folder, _fixed_shapes(other))


def _unordered(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value


def _fixed_shapes(adapter: _Adapter) -> dict[str, list[int]]:
    """Return the shapes by name, without the rank, which may differ between parts."""
    return {
        name: [size for axis, size in enumerate(tensor.shape) if axis != _rank_axis(name)]
        for name, tensor in adapter.tensors.items()
    }


def _refuse_other_shapes(
    first: Path, first_shapes: dict[str, list[int]], other: Path, other_shapes: dict[str, list[int]]
) -> None:
    names = first_shapes.keys() | other_shapes.keys()
    different = [name for name in names if first_shapes.get(name) != other_shapes.get(name)]
    if different:
        name = min(different)
        shapes = " and ".join(f"{shapes.get(name, 'missing')}" for shapes in (first_shapes, other_shapes))
        raise UserError(
            f"{first} and {other}: {len(different)} tensors differ, such as {name} (sizes {shapes}): {_ONE_BASE}"
        )


def _joined(name: str, adapters: Sequence[_Adapter], factors: Sequence[float]) -> Tensor:
    """Return the parts' A stacked along the rank, or their B, each times its factor, likewise; in float32."""
    if _rank_axis(name) == 0:
        return torch.cat([adapter.tensors[name].float() for adapter in adapters], dim=0)
    scaled = [adapter.tensors[name].double() * factor for adapter, factor in zip(adapters, factors, strict=True)]
    return torch.cat([b.float() for b in scaled], dim=1)


def _joined_config(adapters: Sequence[_Adapter]) -> dict[str, Any]:
    rank = sum(adapter.config["r"] for adapter in adapters)
    return adapters[0].config | {"r": rank, "lora_alpha": rank, "use_rslora": False, "inference_mode": True}


# --- fully fine-tuned models


@dataclass(frozen=True)
class _Model:
    """A model folder: its config, and the file name and shape of each tensor by name."""

    folder: Path
    config: dict[str, Any]
    files: dict[str, str]
    shapes: dict[str, list[int]]

    @property
    def shards(self) -> dict[str, list[str]]:
        """The names of tensors by file name."""
        return {file: [name for name in self.files if self.files[name] == file] for file in self.files.values()}


def _read_model(folder: Path) -> _Model:
    config = read_json(folder / "config.json", what="the config of a fully fine-tuned model")
    files: dict[str, str] = {}
    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with _damage_named(file), safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                files[name], shapes[name] = file.name, opened.get_slice(name).get_shape()
    if not files:
        raise UserError(f"{folder}: no *.safetensors with weights there; a soup needs a fully fine-tuned model")
    return _Model(folder, config, files, shapes)


def _refuse_other_model(first: _Model, other: _Model) -> None:
    for name in sorted(first.config.keys() | other.config.keys()):
        values = [model.config.get(name) for model in (first, other)]
        if name not in _FREE_IN_MODEL_CONFIGS and values[0] != values[1]:
            fault = f"{name}={values[1]!r} in config.json, but {first.folder} has {values[0]!r}"
            raise UserError(f"{other.folder}: {fault}: {_ONE_BASE}")
    _refuse_other_shapes(first.folder, first.shapes, other.folder, other.shapes)


def _write_average(models: Sequence[_Model], weights: Sequence[float], folder: Path) -> None:
    first = models[0]
    shutil.copytree(first.folder, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    for shard, names in first.shards.items():
        _write(folder / shard, {name: _weighted_sum(name, models, weights) for name in names})


def _weighted_sum(name: str, models: Sequence[_Model], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of one tensor over the models, computed in float32, in the dtype of the first model."""
    tensors = [_tensor(model, name) for model in models]
    total = torch.zeros_like(tensors[0], dtype=torch.float32)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor.float(), alpha=weight)
    return total.to(tensors[0].dtype)


def _tensor(model: _Model, name: str) -> Tensor:
    file = model.folder / model.files[name]
    with safe_open(file, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    if not tensor.is_floating_point():
        raise UserError(
            f"{file}: {name} holds {tensor.dtype}, as quantized weights do: a soup needs weights before quantization"
        )
    _refuse_not_finite(file, name, tensor)
    return tensor
