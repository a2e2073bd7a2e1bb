"""Facts about a base model for the card: its name, digest, license and size, read from a few small files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pft_core.errors import UserError
from pft_core.policies import SMOLLM2, TOYWORLD, ModelRef, base_digest, cached_folder, local_folder, public_name

TOYWORLD_LICENSE = "apache-2.0"  # of this package, with which the model ships


@dataclass(frozen=True)
class BaseFacts:
    """A base model. name: on the Hub, in this package, or of its folder. license, parameters: None if unknown.
    conversion: what a base from a GGUF file was made of (see `conversion_of`), empty for other bases."""

    name: str
    is_on_hub: bool
    digest: str | None
    license: str | None
    parameters: int | None
    conversion: Mapping[str, Any]

    @property
    def converted_from(self) -> str | None:
        """The GGUF file and its kinds of weights, None for other bases."""
        made_of = self.conversion
        return f"{made_of['file']} ({', '.join(made_of['weights'])})" if made_of else None

    @property
    def is_in_package(self) -> bool:
        """Whether its name alone loads it where this package is installed."""
        return self.name in (TOYWORLD, SMOLLM2)


def base_facts(ref: ModelRef) -> BaseFacts:
    """Return what is known about the base of a policy; the base of a fully fine-tuned run may be gone."""
    conversion, name = ref.base_conversion or {}, public_name(ref.base)
    try:
        folder = local_folder(ref.base)
        known_digest = ref.base_digest or base_digest(ref.base)
    except UserError:
        return BaseFacts(name, False, ref.base_digest, conversion.get("license"), None, conversion)
    files = folder or cached_folder(ref.base)
    license_name = TOYWORLD_LICENSE if name == TOYWORLD else conversion.get("license") or _license_in(files)
    return BaseFacts(name, folder is None, known_digest, license_name, parameters_in(files), conversion)


def _license_in(folder: Path | None) -> str | None:
    """Return the license that a model's README.md names in its front matter; None if it names none."""
    card = folder / "README.md" if folder else None
    if card is None or not card.is_file():
        return None
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    try:
        front = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except yaml.YAMLError:
        return None
    return str(front["license"]) if isinstance(front, dict) and front.get("license") else None


def parameters_in(folder: Path | None) -> int | None:
    """Return the number of parameters in a folder's safetensors files, from their headers; None if it has none."""
    return sum(_sizes_in(folder)) or None if folder else None


def _sizes_in(folder: Path) -> Iterator[int]:
    from safetensors import safe_open

    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as weights:
            for name in weights.keys():  # noqa: SIM118 (it is no mapping)
                size = 1
                for length in weights.get_slice(name).get_shape():
                    size *= length
                yield size
