"""The typed files that jobs hand to each other: a data set's manifest, a reference to a policy, a report."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pft_core.errors import UserError
from pft_core.preferences import PreferenceSpace
from pft_core.prompts import PromptStyle

MANIFEST_NAME = "manifest.json"
MODEL_REF_NAME = "model_ref.json"


def digest(content: Any) -> str:
    """Return 16 hex digits of the sha256 of JSON-like content; key order does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path, *, what: str) -> Any:
    """Read JSON. Raises UserError that names the file and what it should have been."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UserError(f"{path}: no such file; expected {what}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); expected {what}") from None


@dataclass(frozen=True)
class Shard:
    """One file of a data set: path relative to the manifest, sha256, rows."""

    path: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class DatasetManifest:
    """What `prepare` wrote. Invariant: rows_in = rows_out + rejected, pairs_out = rows_out x len(forms)."""

    source: str
    forms: tuple[str, ...]
    space: PreferenceSpace
    shards: tuple[Shard, ...]
    rows_in: int
    rows_out: int
    pairs_out: int
    rejected: int
    rejected_by_reason: dict[str, int]
    length_quantiles: dict[str, dict[str, float]]
    config_digest: str
    data_digest: str

    def save(self, folder: Path) -> Path:
        """Write manifest.json, last: a folder without it is not a data set."""
        write_json(folder / MANIFEST_NAME, asdict(self))
        return folder / MANIFEST_NAME

    @staticmethod
    def load(folder: Path) -> "DatasetManifest":
        """Read a prepared folder's manifest. Raises UserError where there is none or it is damaged."""
        path = folder / MANIFEST_NAME
        raw = read_json(path, what="the manifest of a folder written by `pft prepare`")
        try:
            raw["space"] = PreferenceSpace.from_dict(raw["space"])
            raw["shards"] = tuple(Shard(**s) for s in raw["shards"])
            raw["forms"] = tuple(raw["forms"])
            return DatasetManifest(**raw)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not a data set manifest ({error}); run `pft prepare` again") from None


@dataclass(frozen=True)
class ModelRef:
    """A trained policy: base model, adapter (LoRA) or own weights (full fine-tuning), and the words it was asked in.

    base: folder or hub name; adapter: folder, or None; weights: folder of a fully fine-tuned model, or None.
    Folders are absolute, or relative to the folder of the reference. trained_sides: the sides of every axis of
    `space` that it was trained on.
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

    def save(self, folder: Path) -> Path:
        write_json(folder / MODEL_REF_NAME, asdict(self))
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
            return ModelRef(**raw)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not a model reference ({error}); train again, or pass --model and --adapter"
            ) from None
