"""The identity of a model: the digest of its files, independent of their place, or its hub name and revision."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from pft_core.files import digest, file_sha256
from pft_core.policies.pretrained import TOKENIZER_FILES, local_folder, place_of_model

WEIGHTS = ("*.safetensors", "*.bin")
# The config, the tokenizer, and a chat template in a separate file.
TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
# The files that decide the token ids of a text.
TOKEN_FILES = (*TOKENIZER_FILES, "merges.txt", "added_tokens.json")
STAMP = "stamp"


def base_digest(name_or_path: str) -> str:
    """Return the digest of a model folder's weights and config, or of a hub model's name and revision.

    Raises UserError if the path does not exist.
    """
    folder = local_folder(name_or_path)
    if folder is None:
        return digest([name_or_path, _revision(name_or_path)])
    return _digest_of(_weights_of(folder))


def model_identity(name_or_path: str) -> str:
    """Return a model's part of a run key: the digest of all files that are read from a folder, or a hub model's name.

    Raises UserError if the path does not exist.
    """
    folder = local_folder(name_or_path)
    if folder is None:
        return name_or_path
    return _digest_of(file for kind in WEIGHTS + TEXT_FILES for file in folder.glob(kind))


def marks_of(folder: Path) -> dict[str, str]:
    """Return the digests and the stamp that identify a model folder or GGUF file, for `is_as_marked`.

    Raises UserError if the folder names its own code.
    """
    folder = Path(place_of_model(str(folder)))
    return _digests_of(folder) | {STAMP: _stamp_of(folder)}


def is_as_marked(folder: Path, marks: Mapping[str, str]) -> bool:
    """Return whether a model folder or GGUF file still has the content for which `marks_of` returned these marks.

    As weights are large, the stamp of file sizes and times is compared first; if it matches, no file is read. Older
    marks have no stamp and fewer digests.
    """
    folder = Path(place_of_model(str(folder)))
    if marks.get(STAMP) == _stamp_of(folder):
        return True
    return all(marks.get(kind, current) == current for kind, current in _digests_of(folder).items())


def _digests_of(folder: Path) -> dict[str, str]:
    return {"digest": base_digest(str(folder)), "tokens": _digest_of(_tokens_of(folder))}


def _stamp_of(folder: Path) -> str:
    stats = {file.name: file.stat() for file in [*_weights_of(folder), *_tokens_of(folder)]}
    return digest({name: [s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in stats.items()})


def _weights_of(folder: Path) -> list[Path]:
    return [file for kind in (*WEIGHTS, "config.json") for file in folder.glob(kind)]


def _tokens_of(folder: Path) -> list[Path]:
    return [folder / name for name in TOKEN_FILES if (folder / name).is_file()]


def _revision(name: str) -> str | None:
    """Return the revision of a hub model in the cache, whose snapshot folder has its name; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent.name if isinstance(config, str) else None


def _digest_of(files: Iterable[Path]) -> str:
    return digest({file.name: _sha256(file, *_stamp(file)) for file in sorted(files)})


def _stamp(file: Path) -> tuple[int, int]:
    return file.stat().st_size, file.stat().st_mtime_ns


@lru_cache(maxsize=1024)  # a search computes the keys of all its trials, and weights are large
def _sha256(file: Path, size: int, modified_ns: int) -> str:
    return file_sha256(file)
