"""What is read of a model folder, or of a model on the hub, without its weights: tokenizer and config.

Code that ships inside a model folder is never run.
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
from pft_core.policies.shipped_base import SHIPPED_BASE, TOYWORLD
from pft_core.prompts import cut_at_message, render_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_SECONDS = 2.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def load_tokenizer(name_or_path: str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer from a folder or the hub.

    Raises UserError for a folder that is missing or has none, and for tokens beyond the embeddings of its config.json.
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


def end_tokens(tokenizer: "PreTrainedTokenizerBase", named: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the ids that end a text: the tokenizer's EOS, then what a model's generation config names, as turns' ends.

    named: `eos_token_id` of that config.
    """
    ids = [named] if isinstance(named, int) else named or []
    return tuple(dict.fromkeys([int(tokenizer.eos_token_id), *map(int, ids)]))


def refuse_tokens_beyond(tokenizer: "PreTrainedTokenizerBase", num_embeddings: int) -> None:
    """Raise UserError for a token, added ones too, that has no embedding: any text may hold it."""
    numbers = {number: token for token, number in tokenizer.get_vocab().items()}
    _refuse_beyond(str(tokenizer.name_or_path), numbers, num_embeddings)


def _refuse_beyond(name: str, tokens: Mapping[int, str], num_embeddings: int) -> None:
    beyond = [number for number in tokens if number >= num_embeddings]
    if beyond:
        raise UserError(
            f"tokenizer {name!r} has {max(beyond) + 1} tokens, the model {num_embeddings} embeddings: "
            f"{tokens[min(beyond)]!r} has id {min(beyond)}: use the model's own tokenizer, or resize the model's "
            "embeddings (resize_token_embeddings) and save both"
        )


def _added_tokens(folder: Path) -> dict[int, str]:
    """Return a fast tokenizer's added tokens by id; none where its file is damaged, which loading it will tell."""
    file = folder / "tokenizer.json"
    try:
        added = json.loads(file.read_bytes())["added_tokens"] if file.is_file() else []
        return {int(token["id"]): str(token["content"]) for token in added}
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}


def _num_embeddings(name_or_path: str) -> int | None:
    """Return what a folder's config.json says; None where there is none, as for a hub name."""
    file = Path(name_or_path).expanduser() / "config.json"
    config = read_json(file, what="a model's config") if file.is_file() else {}
    of_text = config.get("text_config")
    number = config.get("vocab_size") or (of_text.get("vocab_size") if isinstance(of_text, dict) else None)
    return number if isinstance(number, int) else None


def refuse_missing_tokenizer(name_or_path: str) -> None:
    """Raise UserError for a folder that is missing, has no tokenizer, or one with added tokens beyond the embeddings
    that its config.json tells of, or wants its own code run; reads files and imports no model library."""
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
    """Raise UserError for a model folder without a chat template, or with one that cannot stand around a message.

    Reads files and imports no model library, so that it can be said before anything starts. tokenizer: its name in the
    message.
    """
    source = _template_source(folder)
    if source is None:
        raise UserError(f"prompt.template=chat, but tokenizer {tokenizer!r} has no chat template: use plain")
    cut_at_message(partial(render_source, source), tokenizer=tokenizer)


def _template_source(folder: Path) -> str | None:
    """Return the text of the template that transformers takes where no other is named."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    named = read_json(config, what="a tokenizer's config").get("chat_template") if config.is_file() else None
    if isinstance(named, list):
        named = {each.get("name"): each.get("template") for each in named if isinstance(each, dict)}.get("default")
    return named


def refuse_unusable_model(name_or_path: str, *, wants_chat: bool) -> None:
    """Say in a moment, without transformers, that a model cannot be used. Raises UserError.

    A folder has to hold a config and a tokenizer, with a chat template where one is wanted; a hub name has to be in
    this machine's cache, or known to the Hub, which is asked for seconds only.
    """
    refuse_missing_tokenizer(name_or_path)
    folder = local_folder(name_or_path)
    if folder is None:
        folder = cached_folder(name_or_path)
        if folder is None:
            sought = f"model={name_or_path!r}: no such folder here"
            return _refuse_unknown_to_the_hub(name_or_path, "model", sought=sought)
    elif not (folder / "config.json").is_file():
        raise UserError(f"model={name_or_path!r} has no config.json: give the folder of a model")
    # What the cache lacks of a hub model is fetched with its tokenizer.
    if wants_chat and (local_folder(name_or_path) or (folder / "tokenizer_config.json").is_file()):
        refuse_unusable_template(folder, tokenizer=name_or_path)


def cached_folder(name: str) -> Path | None:
    """Return the snapshot of a hub model that this machine's cache holds, None where it has none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        raise UserError(f"model={name!r}: no such folder, and no name that a model on the Hub can have") from None
    return Path(found).parent if isinstance(found, str) else None


def _refuse_unknown_to_the_hub(name: str, kind: Literal["model", "data set"], *, sought: str) -> None:
    """Raise UserError where the Hub has no such model or data set, or cannot be asked.

    It is asked once, for at most HUB_SECONDS; one that is slow has to be waited for. sought: where it was looked for
    already, and in vain, such as "no such folder here".
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
        return  # it is there, or time will tell
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(f"{sought}, and no such {kind} on the Hub.{_beside(name)}") from None
    except HfHubHTTPError:
        return
    except (httpx2.TransportError, OfflineModeIsEnabled) as error:
        fault = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{sought}, nor in the cache, and the Hub cannot be asked ({fault}).{_beside(name)}") from None


def refuse_unknown_data_set(name: str) -> None:
    """Raise UserError for a data set, OWNER/NAME or OWNER/NAME:CONFIG, that is neither in the cache nor on the Hub."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    owner_and_name = name.partition(":")[0]
    folders = [Path(HF_HUB_CACHE) / f"datasets--{owner_and_name.replace('/', '--')}"]
    folders.append(Path(HF_HOME) / "datasets" / owner_and_name.replace("/", "___"))
    if not any(folder.is_dir() for folder in folders):
        _refuse_unknown_to_the_hub(owner_and_name, "data set", sought=f"{name}: no such path here")


def _beside(name: str) -> str:
    """Return a hint at a file or folder with a like name, where there is one."""
    parent = Path(name).parent
    paths = [str(path) for path in parent.iterdir()] if parent.is_dir() else []
    near = difflib.get_close_matches(str(Path(name)), paths, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


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
def load_errors(name_or_path: str, kind: str = "a causal language model") -> Iterator[None]:
    """Turn a loader's refusal into one message that names the model.

    Loaders check the sizes, names and kinds of a user's files with whatever they raise; only a lack of memory is none
    of the files' faults.
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
                "it needs its own code (auto_map in config.json), which is never run: use a model transformers knows"
            )
        else:
            fault = f"cannot be loaded as {kind} ({first_line(error)})"
        raise UserError(f"model={name_or_path!r}: {fault}") from None


def first_line(error: Exception) -> str:
    """Return what an error says in a line: its first, with the next one where that only announces it."""
    lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    # What python itself raises says little without its kind: KeyError('x') is "'x'".
    is_pythons = isinstance(error, LookupError | ArithmeticError | TypeError | AttributeError)
    return f"{type(error).__name__}: {said}" if is_pythons or not said else said
