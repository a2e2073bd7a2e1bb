"""The reference to a trained policy, which training writes, and evaluation and serving read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pft_core.data import PreferenceSpace
from pft_core.errors import UserError
from pft_core.files import file_sha256, read_json, write_json
from pft_core.policies.base_location import BASE_MARKS, base_fields, locate_base
from pft_core.policies.gguf import is_gguf_name
from pft_core.policies.identity import is_as_marked, marks_of
from pft_core.prompts import PromptStyle

MODEL_REF_NAME = "model_ref.json"  # in the folder of every policy
WEIGHTS_MARKS = "weights_marks"
# Fields that identify an adapter's files.
ADAPTER_FILES = {"adapter_sha256": "adapter_model.safetensors", "adapter_config_sha256": "adapter_config.json"}


@dataclass(frozen=True)
class ModelRef:
    """A trained policy: its base, its adapter (LoRA) or own weights (full fine-tuning), prompt style and space.

    base: a folder, a GGUF file, a hub name, or the name of a model in a package (`toyworld`, `smollm2-135m`). adapter:
    a folder, or None. weights: the folder of a fully fine-tuned model, or None. Folders are absolute, or relative to
    the reference's own folder. trained_sides: the sides on which every axis of `space` was trained.
    adapter_config_sha256: sha256 of the file that sets the scale and place of the adapter's weights; None in older
    references. base_conversion: the file that a base was converted from (see `conversion_of`); None for other bases.
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
    base_digest: str | None = None  # of a base without a name; set when the reference is read
    adapter_config_sha256: str | None = None
    base_conversion: dict[str, Any] | None = None

    def save(self, folder: Path) -> Path:
        """Write the reference to a folder and return its file."""
        raw = {key: value for key, value in asdict(self).items() if key not in ("base_digest", "base_conversion")}
        marks = {WEIGHTS_MARKS: marks_of(folder / self.weights)} if self.weights else {}
        write_json(folder / MODEL_REF_NAME, raw | base_fields(self.base, folder) | marks)
        return folder / MODEL_REF_NAME

    @staticmethod
    def load(path: Path) -> "ModelRef":
        """Read a reference from its file or its folder, and resolve relative folders.

        Raises UserError if it is damaged, or if base or weights are not those that it describes. The files of adapters,
        of which there may be many, are checked later: see `refuse_other_adapter`.
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
            raw["base"] = locate_base(raw["base"], marks, path.parent)
            return ModelRef(**raw)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: not a model reference ({error}); train again, or pass --model and --adapter"
            ) from None


def reference_at(place: str) -> ModelRef | None:
    """Return the reference that a file or folder is or holds; None for a plain model. Raises UserError if it is
    damaged."""
    path = Path(place)
    is_reference = path.is_file() and not is_gguf_name(path)
    return ModelRef.load(path.resolve()) if is_reference or (path / MODEL_REF_NAME).is_file() else None


def adapter_digests(folder: Path) -> dict[str, Any]:
    """Return the digests of an adapter's weights and config, by the names of their fields in a reference.

    Raises UserError if one of the files is missing.
    """
    return {field: file_sha256(_adapter_file(folder / name)) for field, name in ADAPTER_FILES.items()}


def _adapter_file(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such file; an adapter is a folder written by `pft train` or by peft")
    return path


def refuse_other_adapter(ref: ModelRef, digests: Mapping[str, str], *, name: str) -> None:
    """Raise UserError if an adapter is not the one that its reference describes. Older references lack some digests.

    digests: the adapter's `adapter_digests`. name: the adapter's name, for the message.
    """
    for field, file in ADAPTER_FILES.items():
        expected = getattr(ref, field)
        if expected is not None and expected != digests[field]:
            raise UserError(
                f"{name}: not the adapter that its {MODEL_REF_NAME} describes (sha256 of {file}: expected "
                f"{expected[:12]}, found {digests[field][:12]}): copy the run again, or train it again"
            )


def _refuse_other_weights(weights: str | None, marks: Mapping[str, str]) -> None:
    if weights and marks and Path(weights).is_dir() and not is_as_marked(Path(weights), marks):
        raise UserError(
            f"{weights}: not the weights that its {MODEL_REF_NAME} describes (weights, config or tokenizer differ): "
            "copy the run again, or train it again"
        )
