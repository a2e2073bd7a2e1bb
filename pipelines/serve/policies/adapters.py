"""Adapters by content: `name@sha12`, where the digits are a digest of the files.

A node keeps copies in a folder that all its processes share. Each copy is checked against the digest in its id before
it is used, so an id always means the same weights on every node, whatever happens at the place it came from.
"""

import fcntl
import functools
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from pft_core.errors import UserError
from pft_core.files import digest, read_json, whole_folder
from pft_core.policies import PLAIN_STARTS, adapter_digests, interpolate_adapters
from pipelines.tracking import mask_credentials, opening, quiet_mlflow, sqlite_path, tracking_uri

DIGITS = 12
ADAPTER_ID = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]{0,63})(?:@(?P<version>[0-9a-z][0-9a-z_-]{0,63}))?")
SHA = re.compile(rf"[0-9a-f]{{{DIGITS}}}")
HIDDEN = re.compile(rf"\.+{SHA.pattern}\..+")  # a folder that is being made or removed
REGISTRY_SCHEME, BUCKET_SCHEME = "models:/", "s3://"
# Fields of peft's config that change a model beyond an A and B beside a layer; training-only fields are not listed.
BEYOND_LORA = (
    "use_dora", "modules_to_save", "lora_bias", "trainable_token_indices", "target_parameters", "layer_replication",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip
ADAPTER_FILES = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)


class OtherContentError(UserError):
    """A place no longer holds the adapter that it held when the id was read."""


class MissingError(UserError):
    """A place holds nothing."""


class UnreachableError(UserError):
    """A bucket or a registry does not answer; its content may well be unchanged."""


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter on this node's disk. Its id is a name and a digest of its content, so an id never changes meaning."""

    id: str
    folder: Path


@dataclass(frozen=True)
class LocatedAdapter:
    """An adapter and its place: a folder, s3:// address or models:/ version with the two files of a LoRA adapter."""

    id: str
    place: str


@dataclass(frozen=True)
class AdapterBlend:
    """An adapter to interpolate: `first_weight` of the first, the rest of the second."""

    id: str
    first: LocatedAdapter
    second: LocatedAdapter
    first_weight: float


AdapterSource = LocatedAdapter | AdapterBlend  # where the weights of an adapter come from


def blend(first: LocatedAdapter, second: LocatedAdapter, first_weight: float, *, name: str) -> AdapterSource:
    """Return the adapter between two. Its digits are a digest of the ids and the weight, which determine its bytes."""
    if first_weight in (0, 1):
        return first if first_weight == 1 else second
    digits = digest([first.id, second.id, round(first_weight, 6)])[:DIGITS]
    return AdapterBlend(f"{name}-{first_weight:.2f}@{digits}", first, second, first_weight)


@dataclass(frozen=True)
class AdapterContent:
    """Digests of an adapter's files: 12 hex digits of weights and config for its id, and those that references hold."""

    digits: str
    digests: dict[str, Any]


def content_of(folder: Path) -> AdapterContent:
    """Return the digests of an adapter's files: its weights, and the config that scales them."""
    digests = adapter_digests(folder)
    parts = digests["adapter_config_sha256"] + digests["adapter_sha256"]
    return AdapterContent(hashlib.sha256(bytes.fromhex(parts)).hexdigest()[:DIGITS], digests)


def refuse_other_kinds(name: str, folder: Path) -> None:
    """Raise UserError for an adapter that is not just pairs of low-rank matrices, because no engine can batch it."""
    config = read_json(folder / CONFIG_NAME, what="an adapter's config")
    kind, bias = config.get("peft_type", "LORA"), config.get("bias", "none")
    extras = [f"peft_type={kind}"] if kind != "LORA" else []
    extras += [f"bias={bias}"] if bias != "none" else []
    start = config.get("init_lora_weights", True)
    extras += [] if start in PLAIN_STARTS else [f"init_lora_weights={start}"]  # it changes the base that others share
    extras += [field for field in BEYOND_LORA if config.get(field)]
    if extras:
        raise UserError(
            f"{name}: cannot be served, because it is not a plain LoRA adapter ({', '.join(extras)}): merge it into "
            "its base, or train it without these settings"
        )


class AdapterCache:
    """Copies of adapters on this node's disk; the least recently used is removed first.

    Folders are named by their digits. A process that uses a copy holds a shared lock on it, which is released however
    the process ends. A locked copy is never removed, so there are more than `max_copies` only while more are in use. An
    incomplete copy has a hidden name: it is never used, and the next eviction removes it.
    """

    def __init__(self, folder: Path, *, max_copies: int, registry: str | None = None):
        """registry: MLflow's URI, for adapters at models:/NAME/VERSION."""
        self._folder, self._max_copies, self._registry = folder, max_copies, registry
        folder.mkdir(parents=True, exist_ok=True)
        self._evict()

    @contextmanager
    def held(self, source: AdapterSource) -> Iterator[LoadedAdapter]:
        """Yield the adapter, fetched or interpolated on first use; it stays on disk within the context.

        Raises UserError if its place holds nothing, other content than the id says, or parts that cannot be blended.
        """
        digits = source.id.rpartition("@")[2]
        target = self._folder / digits
        with self._lock(f".{digits}.lock", fcntl.LOCK_SH):
            is_new = self._ensure(source, target)
            os.utime(target)
            if is_new:
                self._evict()
            yield LoadedAdapter(source.id, target)

    def _ensure(self, source: AdapterSource, target: Path) -> bool:
        """Make the copy if it is missing; concurrent callers wait for the first. Returns whether this call made it."""
        if target.is_dir():
            return False
        with self._lock(f".{target.name}.make", fcntl.LOCK_EX):
            if target.is_dir():
                return False
            self._make(source, target)
            return True

    def _make(self, source: AdapterSource, target: Path) -> None:
        try:
            if isinstance(source, AdapterBlend):
                with self.held(source.first) as first, self.held(source.second) as second:
                    parts = [(first.folder, source.first_weight), (second.folder, 1 - source.first_weight)]
                    interpolate_adapters(parts, target)
            else:
                with whole_folder(target) as unfinished:
                    fetch(source.place, unfinished, registry=self._registry)
                    _refuse_other_content(source, unfinished)
        except OSError as error:
            raise UserError(f"{source.id}: cannot be copied to {self._folder} ({error.strerror or error})") from None

    def _evict(self) -> None:
        """Remove copies beyond the limit and leftovers of killed processes, except folders in use or being made."""
        folders = [path for path in self._folder.iterdir() if path.is_dir()]
        copies = sorted((path for path in folders if SHA.fullmatch(path.name)), key=_last_use)
        leftovers = [path for path in folders if HIDDEN.fullmatch(path.name)]
        for path in [*copies[: max(0, len(copies) - self._max_copies)], *leftovers]:
            lock = f".{path.name.lstrip('.')[:DIGITS]}.lock"
            with suppress(BlockingIOError, FileNotFoundError), self._lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                _remove(path)

    @contextmanager
    def _lock(self, name: str, kind: int) -> Iterator[None]:
        with (self._folder / name).open("a") as file:
            fcntl.flock(file, kind)
            yield


def _remove(path: Path) -> None:
    """Hide a folder, then remove it: an interrupted removal must leave nothing that looks complete."""
    hidden = path
    if not path.name.startswith("."):
        hidden = path.with_name(f".{path.name}.gone")
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process removed it
        return 0.0


def _refuse_other_content(source: LocatedAdapter, folder: Path) -> None:
    actual, wanted = content_of(folder).digits, source.id.rpartition("@")[2]
    if actual != wanted:
        raise OtherContentError(f"{source.id}: its place now holds the adapter @{actual}: request it by that id")


# --- places


def fetch(place: str, folder: Path, *, registry: str | None = None) -> Path:
    """Copy an adapter's two files into a folder. Raises UserError if one is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ADAPTER_FILES:
        if place.startswith(REGISTRY_SCHEME):
            download(place, f"adapter/{name}", folder, registry=registry)
            continue
        with open_file(f"{place.rstrip('/')}/{name}") as file, (folder / name).open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
    return folder


@contextmanager
def open_file(place: str) -> Iterator[Any]:
    """Open a file on disk or at an s3:// address for reading. Raises UserError if it is missing."""
    with read_errors(place):
        if place.startswith(BUCKET_SCHEME):
            files, path = object_store(place)
            file: Any = files.open_input_stream(path)
        elif Path(place).is_file():  # not a pipe, which would never end
            file = Path(place).open("rb")  # noqa: SIM115 (closed below)
        else:
            raise FileNotFoundError
    with file:
        yield file


@contextmanager
def read_errors(place: str) -> Iterator[None]:
    """Turn errors of reading a disk or a bucket into UserErrors."""
    try:
        yield
    except FileNotFoundError as error:
        text = f"{error.filename or place}: no such file; an adapter is a folder from `pft train` or peft"
        raise MissingError(text) from None
    except OSError as error:
        text = f"{place}: cannot be read ({str(error.strerror or error).splitlines()[0]})"
        raise (UnreachableError if place.startswith(BUCKET_SCHEME) else UserError)(text) from None


def object_store(place: str) -> tuple[Any, str]:
    """Return pyarrow's file system and the path in it; AWS's environment variables give credentials and endpoint."""
    path = place.removeprefix(BUCKET_SCHEME).rstrip("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return _bucket(path.partition("/")[0], endpoint), path


@functools.lru_cache(maxsize=16)  # each one keeps connections of its own
def _bucket(name: str, endpoint: str | None) -> Any:
    from pyarrow.fs import FileSystem, S3FileSystem

    if not endpoint:
        return FileSystem.from_uri(f"{BUCKET_SCHEME}{name}")[0]
    scheme, _, host = endpoint.rstrip("/").rpartition("://")
    return S3FileSystem(endpoint_override=host, scheme=scheme or "https")


def etags(place: str, names: Sequence[str]) -> tuple[bytes, ...]:
    """Return the ETags of files in a bucket. Raises UserError if one cannot be read.

    Sizes and times do not identify content: two adapters have the same size, and a bucket's times are whole seconds.
    """
    tags = []
    for name in names:
        with read_errors(f"{place}/{name}"):
            files, path = object_store(f"{place}/{name}")
            with files.open_input_file(path) as file:
                tags.append(file.metadata()["ETag"])
    return tuple(tags)


# --- MLflow's registry


def download(place: str, path: str, folder: Path, *, registry: str | None) -> Path:
    """Copy a file of a registered version, models:/NAME/VERSION, into a folder. Raises UserError if that fails."""
    # A progress bar for each file would fill the server's log.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    name, _, version = place.removeprefix(REGISTRY_SCHEME).partition("/")
    with registry_client(place, registry) as (client, uri):
        from mlflow.artifacts import download_artifacts

        # For a models:/ address MLflow would use the process's own registry, whatever `tracking_uri` says.
        source = client.get_model_version_download_uri(name, version)
        copy = download_artifacts(artifact_uri=f"{source.rstrip('/')}/{path}", dst_path=str(folder), tracking_uri=uri)
    return Path(copy).rename(folder / Path(path).name)


@contextmanager
def registry_client(place: str, registry: str | None) -> Iterator[tuple[Any, str]]:
    """Yield MLflow's client and its URI. Raises UserError if the registry lacks the place, or does not answer."""
    quiet_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(registry, Path("runs"))
    path = sqlite_path(uri)
    if path is not None and not path.is_file():  # MLflow would create an empty one
        raise UserError(f"store.registry={uri}: no such file: set it to the URI that `pft train` logged to")
    try:
        with opening(uri):
            client = MlflowClient(tracking_uri=uri)
        yield client, uri
    except (MlflowException, OSError) as error:
        reason = mask_credentials(str(error) or type(error).__name__).splitlines()[0]
        absent = getattr(error, "error_code", None) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
        text = f"{place}: not in the registry {mask_credentials(uri)} ({reason})"
        raise (UserError if absent else UnreachableError)(text) from None
