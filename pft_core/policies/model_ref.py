"""The reference to a trained policy: what training hands to evaluation and serving."""

from dataclasses import asdict, dataclass
from pathlib import Path

from pft_core.data import PreferenceSpace
from pft_core.errors import UserError
from pft_core.files import read_json, write_json
from pft_core.policies.base_place import BASE_MARKS, found_base, named_base
from pft_core.prompts import PromptStyle

MODEL_REF_NAME = "model_ref.json"


@dataclass(frozen=True)
class ModelRef:
    """A trained policy: base model, adapter (LoRA) or own weights (full fine-tuning), and the words it was asked in.

    base: folder, hub name, or `toyworld`, which ships with the code; adapter: folder, or None; weights: folder of a
    fully fine-tuned model, or None. Folders are absolute, or relative to the folder of the reference.
    trained_sides: the sides of every axis of `space` that it was trained on.
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

    def save(self, folder: Path) -> Path:
        raw = {key: value for key, value in asdict(self).items() if key != "base_digest"}
        write_json(folder / MODEL_REF_NAME, raw | named_base(self.base, folder))
        return folder / MODEL_REF_NAME

    @staticmethod
    def load(path: Path) -> "ModelRef":
        """Read a reference from its file or its folder; relative folders are resolved. Raises UserError."""
        path = path / MODEL_REF_NAME if path.is_dir() else path
        raw = read_json(path, what="a model reference written by `pft train`")
        try:
            raw["style"] = PromptStyle.from_dict(raw["style"])
            raw["space"] = PreferenceSpace.from_dict(raw["space"])
            raw["trained_sides"] = tuple(raw["trained_sides"])
            for key in ("adapter", "weights"):
                raw[key] = str(path.parent / raw[key]) if raw[key] else None
            marks = raw.pop(BASE_MARKS, {})
            if raw["base"].startswith("./"):
                raw["base_digest"] = marks.get("digest")
            raw["base"] = found_base(raw["base"], marks, path.parent)
            return ModelRef(**raw)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: not a model reference ({error}); train again, or pass --model and --adapter"
            ) from None
