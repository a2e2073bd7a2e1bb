"""The reference to a trained policy: what training hands to evaluation and serving."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pft_core.data import PreferenceSpace
from pft_core.errors import UserError
from pft_core.files import file_sha256, read_json, write_json
from pft_core.policies.base_location import BASE_MARKS, found_base, named_base
from pft_core.policies.identity import is_as_marked, marks_of
from pft_core.prompts import PromptStyle

MODEL_REF_NAME = "model_ref.json"  # in the folder of every policy
WEIGHTS_MARKS = "weights_marks"
# The fields that tell an adapter's files.
ADAPTER_FILES = {"adapter_sha256": "adapter_model.safetensors", "adapter_config_sha256": "adapter_config.json"}


@dataclass(frozen=True)
class ModelRef:
    """A trained policy: base model, adapter (LoRA) or own weights (full fine-tuning), and the words it was asked in.

    base: folder, hub name, or `toyworld`, which ships with the code; adapter: folder, or None; weights: folder of a
    fully fine-tuned model, or None. Folders are absolute, or relative to the folder of the reference.
    trained_sides: the sides of every axis of `space` that it was trained on. adapter_config_sha256: of what scales and
    places the adapter's weights; None in older references.
    """

    base: str
    adapter: str | None
    weights: str | None
    style: PromptStyle
    space: PreferenceSpace
    trained_sides: tuple[int, ...]
    template_digest: str
    data_digest: str
    config_digest: str
    adapter_sha256: str | None
    base_digest: str | None = None  # of a base without a name, as it is known from reading the reference
    adapter_config_sha256: str | None = None

    def save(self, folder: Path) -> Path:
        """Write the reference to a folder, as model_ref.json."""
        raw = {key: value for key, value in asdict(self).items() if key != "base_digest"}
        marks = {WEIGHTS_MARKS: marks_of(folder / self.weights)} if self.weights else {}
        write_json(folder / MODEL_REF_NAME, raw | named_base(self.base, folder) | marks)
        return folder / MODEL_REF_NAME

    @staticmethod
    def load(path: Path) -> "ModelRef":
        """Read a reference from its file or its folder; relative folders are resolved.

        Raises UserError, also where base or weights are not those that it describes. An adapter's files, of which
        there may be many, are checked where it is opened: see `refuse_other_adapter`.
        """
        path = path / MODEL_REF_NAME if path.is_dir() else path
        raw = read_json(path, what="a model reference written by `pft train`")
        try:
            raw["style"] = PromptStyle.from_dict(raw["style"])
            raw["space"] = PreferenceSpace.from_dict(raw["space"])
            raw["trained_sides"] = tuple(raw["trained_sides"])
            for key in ("adapter", "weights"):
                raw[key] = str(path.parent / raw[key]) if raw[key] else None
            _refuse_other_weights(raw["weights"], raw.pop(WEIGHTS_MARKS, {}))
            marks = raw.pop(BASE_MARKS, {})
            if raw["base"].startswith("./"):
                raw["base_digest"] = marks.get("digest")
            raw["base"] = found_base(raw["base"], marks, path.parent)
            return ModelRef(**raw)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: not a model reference ({error}); train again, or pass --model and --adapter"
            ) from None


def adapter_digests(folder: Path) -> dict[str, Any]:
    """Return what a reference says of an adapter's files, by the names of its fields: weights, and what scales them.

    Raises UserError where one of them is not there.
    """
    return {field: file_sha256(_adapter_file(folder / name)) for field, name in ADAPTER_FILES.items()}


def _adapter_file(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such file; an adapter is a folder written by `pft train` or by peft")
    return path


def refuse_other_adapter(ref: ModelRef, found: Mapping[str, str], *, name: str) -> None:
    """Raise UserError where an adapter is not the one that its reference describes; older ones do not say all of it.

    found: its `adapter_digests`; name: the adapter's, in the message.
    """
    for field, file in ADAPTER_FILES.items():
        told = getattr(ref, field)
        if told is not None and told != found[field]:
            raise UserError(
                f"{name}: not the adapter that its {MODEL_REF_NAME} describes (sha256 of {file} {told[:12]}, found "
                f"{found[field][:12]}): copy the run again, or train it again"
            )


def _refuse_other_weights(weights: str | None, marks: Mapping[str, str]) -> None:
    if weights and marks and Path(weights).is_dir() and not is_as_marked(Path(weights), marks):
        raise UserError(
            f"{weights}: not the weights that its {MODEL_REF_NAME} describes (weights, config or tokenizer differ): "
            "copy the run again, or train it again"
        )
