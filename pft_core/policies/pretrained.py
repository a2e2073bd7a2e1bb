"""What is read of a model folder, or of a model on the hub, without its weights: tokenizer and config.

Code that ships inside a model folder is never run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from pft_core.errors import UserError
from pft_core.files import read_json
from pft_core.policies.shipped import SHIPPED_BASE, TOYWORLD

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def load_tokenizer(name_or_path: str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer from a folder or the hub. Raises UserError for a folder that is missing or has none."""
    from transformers import AutoTokenizer

    refuse_missing_tokenizer(name_or_path)
    with load_errors(name_or_path):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place_of_model(name_or_path), trust_remote_code=False
        )
    return tokenizer


def refuse_missing_tokenizer(name_or_path: str) -> None:
    """Raise UserError for a folder that is missing, has no tokenizer, or wants its own code run; loads nothing."""
    folder = local_folder(name_or_path)
    if folder and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"model={name_or_path!r} has no tokenizer (looked for {', '.join(TOKENIZER_FILES)}): "
            "copy the base model's tokenizer files into it"
        )


def load_config(name_or_path: str) -> Any:
    """Load a model's config from a folder or the hub. Raises UserError for a folder that has none."""
    from transformers import AutoConfig

    local_folder(name_or_path)
    with load_errors(name_or_path):
        return AutoConfig.from_pretrained(place_of_model(name_or_path), trust_remote_code=False)


def place_of_model(name_or_path: str) -> str:
    """Return what a loader takes: the folder of the model that ships with the code, anything else as it is."""
    return str(SHIPPED_BASE) if name_or_path == TOYWORLD else name_or_path


def public_name(name_or_path: str) -> str:
    """Return how an adapter names its base: a folder by its own name, not by its place on somebody's machine."""
    if Path(name_or_path) == SHIPPED_BASE:
        return TOYWORLD
    return Path(name_or_path).name if Path(name_or_path).is_dir() else name_or_path


def local_folder(name_or_path: str) -> Path | None:
    """Return the folder, or None for a hub name. Raises UserError for a path that leads nowhere, or to code."""
    path = Path(place_of_model(name_or_path)).expanduser()
    if path.is_dir():
        _refuse_own_code(path)
        return path
    if name_or_path.startswith(("/", ".", "~")) or name_or_path.count("/") > 1:
        raise UserError(f"model={name_or_path!r}: no such folder: put the model there, or say where it lies")
    return None


def _refuse_own_code(folder: Path) -> None:
    """Raise UserError for a model folder that names code of its own, also where transformers could do without."""
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        if file.is_file() and "auto_map" in read_json(file, what="a model's config"):
            raise UserError(
                f"model={str(folder)!r}: it names its own code (auto_map in {name}), which is never run: use a model "
                "that transformers knows; where it knows this one, delete auto_map"
            )


@contextmanager
def load_errors(name_or_path: str) -> Iterator[None]:
    """Turn a loader's refusal into one message that names the model."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        if "custom code" in str(error):
            fault = (
                "it needs its own code (auto_map in config.json), which is never run: use a model transformers knows"
            )
        else:
            fault = f"cannot be loaded as a causal language model ({first_line(error)})"
        raise UserError(f"model={name_or_path!r}: {fault}") from None


def first_line(error: Any) -> str:
    return str(error).strip().partition("\n")[0]
