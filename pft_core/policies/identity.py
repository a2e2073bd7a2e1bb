"""What identifies a model: its files, wherever they lie, or its name and revision on the hub."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from pft_core.files import digest, file_sha256
from pft_core.policies.pretrained import local_folder

WEIGHTS = ("*.safetensors", "*.bin")
# Beside the weights: config and tokenizer, and a chat template of its own file.
WORDS = ("*.json", "*.txt", "*.model", "*.jinja")


def base_digest(name_or_path: str) -> str:
    """Return the digest of a model folder's weights and config; of a hub model, of its name and revision.

    Raises UserError for a path that leads nowhere.
    """
    folder = local_folder(name_or_path)
    if folder is None:
        return digest([name_or_path, _revision(name_or_path)])
    return _digest_of([*(file for kind in WEIGHTS for file in folder.glob(kind)), folder / "config.json"])


def model_identity(name_or_path: str) -> str:
    """Return what a run's key holds of a model: the digest of all that is read of a folder; a hub model's name.

    Raises UserError for a path that leads nowhere.
    """
    folder = local_folder(name_or_path)
    if folder is None:
        return name_or_path
    return _digest_of(file for kind in WEIGHTS + WORDS for file in folder.glob(kind))


def _revision(name: str) -> str | None:
    """The revision of a hub model that has been loaded: its snapshot in the cache is named after it."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent.name if isinstance(config, str) else None


def _digest_of(files: Iterable[Path]) -> str:
    return digest({file.name: _sha256(file, *_stamp(file)) for file in sorted(files)})


def _stamp(file: Path) -> tuple[int, int]:
    return file.stat().st_size, file.stat().st_mtime_ns


@lru_cache(maxsize=1024)  # a search asks for the keys of all its trials, and weights are large
def _sha256(file: Path, size: int, modified_ns: int) -> str:
    return file_sha256(file)
