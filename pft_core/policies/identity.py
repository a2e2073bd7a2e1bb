"""What identifies a model: its files, wherever they lie, or its name and revision on the hub."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from pft_core.files import digest, file_sha256
from pft_core.policies.pretrained import TOKENIZER_FILES, local_folder

WEIGHTS = ("*.safetensors", "*.bin")
# Beside the weights: config and tokenizer, and a chat template of its own file.
WORDS = ("*.json", "*.txt", "*.model", "*.jinja")
# Of the words, what makes token ids of a text.
TOKENS = (*TOKENIZER_FILES, "merges.txt", "added_tokens.json")
STAMP = "stamp"


def base_digest(name_or_path: str) -> str:
    """Return the digest of a model folder's weights and config; of a hub model, of its name and revision.

    Raises UserError for a path that leads nowhere.
    """
    folder = local_folder(name_or_path)
    if folder is None:
        return digest([name_or_path, _revision(name_or_path)])
    return _digest_of(_weights_of(folder))


def model_identity(name_or_path: str) -> str:
    """Return what a run's key holds of a model: the digest of all that is read of a folder; a hub model's name.

    Raises UserError for a path that leads nowhere.
    """
    folder = local_folder(name_or_path)
    if folder is None:
        return name_or_path
    return _digest_of(file for kind in WEIGHTS + WORDS for file in folder.glob(kind))


def marks_of(folder: Path) -> dict[str, str]:
    """Return what tells a model's folder from others, for `is_as_marked`. Raises UserError for one with own code."""
    return _digests_of(folder) | {STAMP: _stamp_of(folder)}


def is_as_marked(folder: Path, marks: Mapping[str, str]) -> bool:
    """Whether a model's folder holds what it held when it was marked; older marks hold fewer digests, and no stamp.

    Weights are large: a folder whose files nobody has touched since is known by its stamp.
    """
    if marks.get(STAMP) == _stamp_of(folder):
        return True
    return all(marks.get(kind, found) == found for kind, found in _digests_of(folder).items())


def _digests_of(folder: Path) -> dict[str, str]:
    return {"digest": base_digest(str(folder)), "tokens": _digest_of(_tokens_of(folder))}


def _stamp_of(folder: Path) -> str:
    stats = {file.name: file.stat() for file in [*_weights_of(folder), *_tokens_of(folder)]}
    return digest({name: [s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in stats.items()})


def _weights_of(folder: Path) -> list[Path]:
    return [file for kind in (*WEIGHTS, "config.json") for file in folder.glob(kind)]


def _tokens_of(folder: Path) -> list[Path]:
    return [folder / name for name in TOKENS if (folder / name).is_file()]


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
