"""Tokenizers and configs of models, from folders or the hub, without their weights.

Code inside a model folder is never run.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pft_core.errors import UserError
from pft_core.files import read_json
from pft_core.policies.gguf import converted_folder, gguf_file, is_gguf_name
from pft_core.policies.shipped_base import SHIPPED_BASE, TOYWORLD
from pft_core.prompts import cut_at_message, render_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_SECONDS = 2.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def load_tokenizer(name_or_path: str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer from a folder or the hub.

    Raises UserError if the folder is missing or has no tokenizer, or if a token has no embedding by its config.json.
    """
    from transformers import AutoTokenizer

    refuse_missing_tokenizer(name_or_path)
    place = place_of_model(name_or_path)
    with load_errors(name_or_path, "a tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    num_embeddings = _num_embeddings(place)
    if num_embeddings is not None:
        refuse_tokens_beyond(tokenizer, num_embeddings)
    return tokenizer


def end_tokens(tokenizer: "PreTrainedTokenizerBase", from_config: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the ids that end a text: the tokenizer's EOS, then those of the model's generation config.

    from_config: `eos_token_id` of the generation config, which may include tokens that end a turn.
    """
    ids = [from_config] if isinstance(from_config, int) else from_config or []
    return tuple(dict.fromkeys([int(tokenizer.eos_token_id), *map(int, ids)]))


def refuse_tokens_beyond(tokenizer: "PreTrainedTokenizerBase", num_embeddings: int) -> None:
    """Raise UserError if any token, including added ones, has no embedding, as any text may contain it."""
    numbers = {number: token for token, number in tokenizer.get_vocab().items()}
    _refuse_beyond(str(tokenizer.name_or_path), numbers, num_embeddings)


def _refuse_beyond(name: str, tokens: Mapping[int, str], num_embeddings: int) -> None:
    beyond = [number for number in tokens if number >= num_embeddings]
    if beyond:
        raise UserError(
            f"tokenizer {name!r} has {max(beyond) + 1} tokens, but the model has {num_embeddings} embeddings "
            f"({tokens[min(beyond)]!r} has id {min(beyond)}): use the model's own tokenizer, or resize the model's "
            "embeddings (resize_token_embeddings) and save both"
        )


def _added_tokens(folder: Path) -> dict[int, str]:
    """Return a fast tokenizer's added tokens by id; none if its file is damaged, which loading it will report."""
    file = folder / "tokenizer.json"
    try:
        added = json.loads(file.read_bytes())["added_tokens"] if file.is_file() else []
        return {int(token["id"]): str(token["content"]) for token in added}
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}


def _num_embeddings(name_or_path: str) -> int | None:
    """Return the vocabulary size in a folder's config.json; None if there is no such file, as for a hub name."""
    file = Path(name_or_path).expanduser() / "config.json"
    config = read_json(file, what="a model's config") if file.is_file() else {}
    of_text = config.get("text_config")
    number = config.get("vocab_size") or (of_text.get("vocab_size") if isinstance(of_text, dict) else None)
    return number if isinstance(number, int) else None


def refuse_missing_tokenizer(name_or_path: str) -> None:
    """Raise UserError if a model folder is missing, is an adapter, has no tokenizer, names its own code, or has an
    added token without an embedding by its config.json. Reads files and imports no model library."""
    folder = local_folder(name_or_path)
    if folder and (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise UserError(f"model={name_or_path!r}: is an adapter without its base model: {_instead_of_adapter(folder)}")
    if folder and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"model={name_or_path!r} has no tokenizer (looked for {', '.join(TOKENIZER_FILES)}): "
            "copy the base model's tokenizer files into it"
        )
    num_embeddings = _num_embeddings(name_or_path)
    if folder and num_embeddings is not None:
        _refuse_beyond(name_or_path, _added_tokens(folder), num_embeddings)


def refuse_unusable_template(folder: Path, *, tokenizer: str) -> None:
    """Raise UserError if a model folder has no chat template, or one that does not write fixed text around a message.

    Reads files and imports no model library, so that it can run before anything starts. tokenizer: its name in the
    message.
    """
    source = _template_source(folder)
    if source is None:
        raise UserError(f"prompt.template=chat, but tokenizer {tokenizer!r} has no chat template: use plain")
    cut_at_message(partial(render_source, source), tokenizer=tokenizer)


def _template_source(folder: Path) -> str | None:
    """Return the text of the chat template that transformers uses by default; None if there is none."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    value = read_json(config, what="a tokenizer's config").get("chat_template") if config.is_file() else None
    if isinstance(value, list):
        value = {each.get("name"): each.get("template") for each in value if isinstance(each, dict)}.get("default")
    return value


def refuse_unusable_model(name_or_path: str, *, wants_chat: bool) -> None:
    """Raise UserError if a model cannot be used; quick, without transformers.

    A folder needs a config and a tokenizer, and a chat template if `wants_chat`. A hub model has to be in this
    machine's cache or on the Hub, which gets only seconds to respond.
    """
    refuse_missing_tokenizer(name_or_path)
    folder = local_folder(name_or_path)
    if folder is None:
        folder = cached_folder(name_or_path)
        if folder is None:
            fault = f"model={name_or_path!r}: no such folder here"
            return _refuse_unknown_to_the_hub(name_or_path, "model", fault=fault)
    elif not (folder / "config.json").is_file():
        raise UserError(f"model={name_or_path!r} has no config.json: give the folder of a model")
    # For a hub model, missing files are downloaded later, with the tokenizer.
    if wants_chat and (local_folder(name_or_path) or (folder / "tokenizer_config.json").is_file()):
        refuse_unusable_template(folder, tokenizer=name_or_path)


def cached_folder(name: str) -> Path | None:
    """Return the snapshot of a hub model in this machine's cache; None if there is none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        raise UserError(f"model={name!r}: no such folder, and not a valid name of a model on the Hub") from None
    return Path(config).parent if isinstance(config, str) else None


def weight_files(name_or_path: str) -> list[Path]:
    """Return the files of a model's weights on this machine; none if they would have to be downloaded."""
    folder = local_folder(name_or_path) or cached_folder(name_or_path)
    kinds = ("*.safetensors", "*.bin")
    return sorted(path for kind in kinds for path in folder.glob(kind)) if folder else []


def _refuse_unknown_to_the_hub(name: str, kind: Literal["model", "data set"], *, fault: str) -> None:
    """Raise UserError if the Hub has no such model or data set, or cannot be reached.

    The Hub gets one request and at most HUB_SECONDS; if it is slow, the name counts as known. fault: the start of the
    message, which says where else the name was looked for.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        (HfApi().model_info if kind == "model" else HfApi().dataset_info)(name, timeout=HUB_SECONDS)
    except (GatedRepoError, httpx2.TimeoutException):
        return  # it exists, or the download will tell
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(f"{fault}, and no such {kind} on the Hub.{_similar_path(name)}") from None
    except HfHubHTTPError:
        return
    except (httpx2.TransportError, OfflineModeIsEnabled) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{fault}, nor in the cache, and the Hub cannot be reached ({reason}).{_similar_path(name)}"
        ) from None


def refuse_unknown_data_set(name: str) -> None:
    """Raise UserError if a data set, OWNER/NAME or OWNER/NAME:CONFIG, is neither in the cache nor on the Hub."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    owner_and_name = name.partition(":")[0]
    folders = [Path(HF_HUB_CACHE) / f"datasets--{owner_and_name.replace('/', '--')}"]
    folders.append(Path(HF_HOME) / "datasets" / owner_and_name.replace("/", "___"))
    if not any(folder.is_dir() for folder in folders):
        _refuse_unknown_to_the_hub(owner_and_name, "data set", fault=f"{name}: no such path here")


def _similar_path(name: str) -> str:
    """Return a suggestion of a file or folder with a similar name; an empty string if there is none."""
    parent = Path(name).parent
    paths = [str(path) for path in parent.iterdir()] if parent.is_dir() else []
    near = difflib.get_close_matches(str(Path(name)), paths, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def _instead_of_adapter(folder: Path) -> str:
    if (folder.parent / "model_ref.json").is_file():
        return f"give its run, {folder.resolve().parent}, or the base model and adapter={folder}"
    base = read_json(folder / "adapter_config.json", what="an adapter's config").get("base_model_name_or_path")
    return f"give its base model{f' ({base})' if base else ''} and adapter={folder}"


def load_config(name_or_path: str) -> Any:
    """Load a model's config from a folder or the hub. Raises UserError if it cannot be loaded."""
    from transformers import AutoConfig

    local_folder(name_or_path)
    with load_errors(name_or_path):
        return AutoConfig.from_pretrained(place_of_model(name_or_path), trust_remote_code=False)


def place_of_model(name_or_path: str) -> str:
    """Return the argument for a loader: a folder for the name of the shipped base and for a GGUF file, which is
    converted; anything else unchanged. Raises UserError if the file is missing or cannot be converted."""
    if name_or_path == TOYWORLD:
        return str(SHIPPED_BASE)
    file = gguf_file(name_or_path)
    return str(converted_folder(file)) if file else name_or_path


def public_name(name_or_path: str) -> str:
    """Return the name of a base for an adapter's config: only the last part of a path, which is private; of a GGUF
    file, without the suffix."""
    path = Path(name_or_path)
    if path == SHIPPED_BASE:
        return TOYWORLD
    if is_gguf_name(path):
        return path.stem
    return path.name if path.is_dir() or path.is_absolute() else name_or_path


def local_folder(name_or_path: str) -> Path | None:
    """Return the folder, or None for a hub name. Raises UserError if a path does not exist, or names its own code."""
    path = Path(place_of_model(name_or_path)).expanduser()
    if path.is_dir():
        _refuse_own_code(path)
        return path
    if name_or_path.startswith(("/", ".", "~")) or name_or_path.count("/") > 1:
        raise UserError(f"model={name_or_path!r}: no such folder: put the model there, or correct the path")
    return None


def _refuse_own_code(folder: Path) -> None:
    """Raise UserError if a model folder names its own code, even if transformers would not need it."""
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        if file.is_file() and "auto_map" in read_json(file, what="a model's config"):
            raise UserError(
                f"model={str(folder)!r}: it names its own code (auto_map in {name}), which is never run: use a model "
                "that transformers supports; if it supports this one, delete auto_map"
            )


@contextmanager
def load_errors(name_or_path: str, kind: str = "a causal language model") -> Iterator[None]:
    """Turn a loader's error into a UserError that names the model.

    Loaders raise all kinds of errors for faulty files; only a lack of memory is not the fault of the files.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            raise
        if "custom code" in str(error):
            fault = (
                "it needs its own code (auto_map in config.json), which is never run: use a model that transformers "
                "supports"
            )
        else:
            fault = f"cannot be loaded as {kind} ({first_line(error)})"
        raise UserError(f"model={name_or_path!r}: {fault}") from None


def first_line(error: Exception) -> str:
    """Return an error's message as one line: its first line, with the second if the first ends in a colon."""
    lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()]
    message = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    # Messages of Python's own errors say little without the type: that of KeyError('x') is "'x'".
    is_pythons = isinstance(error, LookupError | ArithmeticError | TypeError | AttributeError)
    return f"{type(error).__name__}: {message}" if is_pythons or not message else message
