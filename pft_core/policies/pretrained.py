"""What is read of a model folder, or of a model on the hub, without its weights: tokenizer and config.

Code that ships inside a model folder is never run.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from pft_core.errors import UserError
from pft_core.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_SECONDS = 2.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def load_tokenizer(name_or_path: str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer from a folder or the hub. Raises UserError for a folder that is missing or has none."""
    from transformers import AutoTokenizer

    refuse_missing_tokenizer(name_or_path)
    with load_errors(name_or_path):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    return tokenizer


def refuse_missing_tokenizer(name_or_path: str) -> None:
    """Raise UserError for a folder that is missing, has no tokenizer, or wants its own code run; loads nothing."""
    folder = local_folder(name_or_path)
    if folder and (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise UserError(f"model={name_or_path!r}: is an adapter without its base model: {_instead_of_adapter(folder)}")
    if folder and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"model={name_or_path!r} has no tokenizer (looked for {', '.join(TOKENIZER_FILES)}): "
            "copy the base model's tokenizer files into it"
        )


def refuse_unusable_model(name_or_path: str, *, wants_chat: bool) -> None:
    """Say in a moment, without transformers, that a model cannot be used. Raises UserError.

    A folder has to hold a config and a tokenizer, with a chat template where one is wanted; a hub name has to be in
    this machine's cache, or known to the Hub, which is asked for at most HUB_SECONDS.
    """
    refuse_missing_tokenizer(name_or_path)
    folder = local_folder(name_or_path)
    if folder is None:
        folder = _cached_folder(name_or_path)
        if folder is None:
            return _refuse_unknown_to_the_hub(name_or_path)
    elif not (folder / "config.json").is_file():
        raise UserError(f"model={name_or_path!r} has no config.json: give the folder of a model")
    if wants_chat and not _has_chat_template(folder):
        raise UserError(f"prompt.template=chat, but tokenizer {name_or_path!r} has no chat template: use plain")


def _cached_folder(name: str) -> Path | None:
    """Return the snapshot of a hub model that this machine's cache holds, None where it has none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        raise UserError(f"model={name!r}: no such folder, and no name that a model on the Hub can have") from None
    return Path(found).parent if isinstance(found, str) else None


def _refuse_unknown_to_the_hub(name: str) -> None:
    """Raise UserError where the Hub has no such model, or cannot be asked; a Hub that is slow has to be waited for."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except (GatedRepoError, httpx2.TimeoutException):
        return  # it is there, or time will tell
    except RepositoryNotFoundError:
        raise UserError(f"{_nowhere(name)}, and no such model on the Hub.{_beside(name)}") from None
    except HfHubHTTPError:
        return
    except (httpx2.TransportError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"{_nowhere(name)}, nor in the cache, and the Hub cannot be asked ({first_line(error)}).{_beside(name)}"
        ) from None


def _nowhere(name: str) -> str:
    return f"model={name!r}: no such folder here"


def _beside(name: str) -> str:
    """Return a hint at a folder with a like name, where there is one."""
    parent = Path(name).parent
    folders = [str(path) for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    near = difflib.get_close_matches(str(Path(name)), folders, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def _has_chat_template(folder: Path) -> bool:
    """Tell from the files alone; files that a partial cache lacks count as holding one."""
    config = folder / "tokenizer_config.json"
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    return not config.is_file() or bool(read_json(config, what="a tokenizer's config").get("chat_template"))


def _instead_of_adapter(folder: Path) -> str:
    if (folder.parent / "model_ref.json").is_file():
        return f"give the run that it is of, {folder.resolve().parent}, or the base model and adapter={folder}"
    base = read_json(folder / "adapter_config.json", what="an adapter's config").get("base_model_name_or_path")
    return f"give its base model{f' ({base})' if base else ''} and adapter={folder}"


def load_config(name_or_path: str) -> Any:
    """Load a model's config from a folder or the hub. Raises UserError for a folder that has none."""
    from transformers import AutoConfig

    local_folder(name_or_path)
    with load_errors(name_or_path):
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)


def local_folder(name_or_path: str) -> Path | None:
    """Return the folder, or None for a hub name. Raises UserError for a path that leads nowhere, or to code."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        _refuse_own_code(path)
        return path
    if name_or_path.startswith(("/", ".", "~")) or name_or_path.count("/") > 1:
        raise UserError(f"model={name_or_path!r}: no such folder")
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
