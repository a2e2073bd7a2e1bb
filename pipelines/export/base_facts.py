"""Facts about a base model for the card: its name, digest, license and size, read from a few small files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from pft_core.errors import UserError
from pft_core.policies import SMOLLM2, TOYWORLD, ModelRef, base_digest, cached_folder, local_folder, public_name

TOYWORLD_LICENSE = "apache-2.0"  # of this package, with which the model ships


@dataclass(frozen=True)
class BaseFacts:
    """A base model. name: on the Hub, in this package, or of its folder. license, parameters: None if unknown.
    converted_from: the GGUF file and its kinds of weights, None for other bases."""

    name: str
    is_on_hub: bool
    digest: str | None
    license: str | None
    parameters: int | None
    converted_from: str | None = None

    @property
    def is_in_package(self) -> bool:
        """Whether its name alone loads it where this package is installed."""
        return self.name in (TOYWORLD, SMOLLM2)


def base_facts(ref: ModelRef) -> BaseFacts:
    """Return what is known about the base of a policy; the base of a fully fine-tuned run may be gone."""
    try:
        folder = local_folder(ref.base)
        known_digest = ref.base_digest or base_digest(ref.base)
    except UserError:
        return BaseFacts(Path(ref.base).name, False, ref.base_digest, None, None)
    name, files = public_name(ref.base), folder or cached_folder(ref.base)
    conversion = ref.base_conversion or {}
    license_name = TOYWORLD_LICENSE if name == TOYWORLD else conversion.get("license") or _license_in(files)
    converted_from = f"{conversion['file']} ({', '.join(conversion['weights'])})" if conversion else None
    return BaseFacts(name, folder is None, known_digest, license_name, parameters_in(files), converted_from)


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
