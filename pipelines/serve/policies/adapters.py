"""Adapters by content: `name@sha12`, where the digits are of the files themselves.

A node keeps copies in a folder that all its processes share. A copy is checked against the digest in its id before
anyone sees it, so an id means the same weights on every node and for ever, whatever happens at the place it came from.
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
HIDDEN = re.compile(rf"\.+{SHA.pattern}\..+")  # what is being made or removed
REGISTRY_SCHEME, BUCKET_SCHEME = "models:/", "s3://"
# Fields of peft's config that change a model in other ways than A and B beside a layer; training's own are not here.
BEYOND_LORA = (
    "use_dora", "modules_to_save", "lora_bias", "trainable_token_indices", "target_parameters", "layer_replication",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip
ADAPTER_FILES = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)


class OtherContentError(UserError):
    """A place holds another adapter than it did when its id was read."""


class MissingError(UserError):
    """There is nothing at a place."""


class UnreachableError(UserError):
    """A bucket or a registry does not answer; what it holds may well be as it was."""


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter on this node's disk; its id is a name and a digest of its content, so an id never changes meaning."""

    id: str
    folder: Path


@dataclass(frozen=True)
class LocatedAdapter:
    """An adapter and where its files are: a folder or an s3:// address with the two files of a LoRA adapter."""

    id: str
    place: str


@dataclass(frozen=True)
class AdapterBlend:
    """An adapter to be made: the first's weight is `first_weight`, the second's the rest."""

    id: str
    first: LocatedAdapter
    second: LocatedAdapter
    first_weight: float


AdapterSource = LocatedAdapter | AdapterBlend  # where the weights of an adapter come from


def blend(first: LocatedAdapter, second: LocatedAdapter, first_weight: float, *, name: str) -> AdapterSource:
    """Name the adapter between two; its digits are those of its recipe, as the same parts give the same bytes."""
    if first_weight in (0, 1):
        return first if first_weight == 1 else second
    digits = digest([first.id, second.id, round(first_weight, 6)])[:DIGITS]
    return AdapterBlend(f"{name}-{first_weight:.2f}@{digits}", first, second, first_weight)


@dataclass(frozen=True)
class AdapterContent:
    """What an adapter's files hold: 12 hex digits of weights and config, which name it, and what a reference says."""

    digits: str
    digests: dict[str, Any]


def content_of(folder: Path) -> AdapterContent:
    """Read an adapter's files: weights, and the config that scales them."""
    digests = adapter_digests(folder)
    parts = digests["adapter_config_sha256"] + digests["adapter_sha256"]
    return AdapterContent(hashlib.sha256(bytes.fromhex(parts)).hexdigest()[:DIGITS], digests)


def refuse_other_kinds(name: str, folder: Path) -> None:
    """Raise UserError for an adapter that is more than pairs of low-rank matrices, which no engine here can batch."""
    config = read_json(folder / CONFIG_NAME, what="an adapter's config")
    kind, bias = config.get("peft_type", "LORA"), config.get("bias", "none")
    found = [f"peft_type={kind}"] if kind != "LORA" else []
    found += [f"bias={bias}"] if bias != "none" else []
    start = config.get("init_lora_weights", True)
    found += [] if start in PLAIN_STARTS else [f"init_lora_weights={start}"]  # it would change the base for all others
    found += [field for field in BEYOND_LORA if config.get(field)]
    if found:
        raise UserError(
            f"{name}: cannot be served, as it is no plain LoRA adapter ({', '.join(found)}): merge it into its base, "
            "or train it without"
        )


class AdapterCache:
    """Copies of adapters on this node's disk, the least recently used going first.

    Folders are named by their digits. A process that uses a copy holds a shared lock on it, which ends with the
    process, however it ends; nobody removes a copy that is held, so that there are more than `most` only while more
    are in use. What is not whole has a hidden name: it is never given away, and the next eviction removes it.
    """

    def __init__(self, folder: Path, *, most: int, registry: str | None = None):
        """registry: MLflow's URI, for adapters at models:/NAME/VERSION."""
        self._folder, self._most, self._registry = folder, most, registry
        folder.mkdir(parents=True, exist_ok=True)
        self._evict()

    @contextmanager
    def held(self, source: AdapterSource) -> Iterator[LoadedAdapter]:
        """Give the adapter, fetched or made where it is not here yet; it stays on disk within the context.

        Raises UserError where its place holds nothing, something else than the id says, or parts that do not add up.
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
        """Make the copy unless it is here; of all who ask at once, one does and the others wait. Returns who did."""
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
        """Remove copies beyond the limit, and what killed processes left; what is in use, or being made, stays."""
        folders = [path for path in self._folder.iterdir() if path.is_dir()]
        copies = sorted((path for path in folders if SHA.fullmatch(path.name)), key=_last_use)
        left = [path for path in folders if HIDDEN.fullmatch(path.name)]
        for path in [*copies[: max(0, len(copies) - self._most)], *left]:
            lock = f".{path.name.lstrip('.')[:DIGITS]}.lock"
            with suppress(BlockingIOError, FileNotFoundError), self._lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                _remove(path)

    @contextmanager
    def _lock(self, name: str, kind: int) -> Iterator[None]:
        with (self._folder / name).open("a") as file:
            fcntl.flock(file, kind)
            yield


def _remove(path: Path) -> None:
    """Remove a folder; it is hidden first, as a removal that is cut short must leave nothing that looks whole."""
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
    found, wanted = content_of(folder).digits, source.id.rpartition("@")[2]
    if found != wanted:
        raise OtherContentError(f"{source.id}: its place holds the adapter @{found} by now: ask for it by that name")


# --- places


def fetch(place: str, folder: Path, *, registry: str | None = None) -> Path:
    """Copy an adapter's two files into a folder. Raises UserError where they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ADAPTER_FILES:
        if place.startswith(REGISTRY_SCHEME):
            download(place, f"adapter/{name}", folder, registry=registry)
            continue
        with opened(f"{place.rstrip('/')}/{name}") as file, (folder / name).open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
    return folder


@contextmanager
def opened(place: str) -> Iterator[Any]:
    """Open a file on disk or at an s3:// address for reading. Raises UserError where it is not there."""
    with reading(place):
        if place.startswith(BUCKET_SCHEME):
            files, path = object_store(place)
            file: Any = files.open_input_stream(path)
        elif Path(place).is_file():  # no pipe, which would never end
            file = Path(place).open("rb")  # noqa: SIM115 (closed below)
        else:
            raise FileNotFoundError
    with file:
        yield file


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Raise UserError for what a disk or a bucket raises."""
    try:
        yield
    except FileNotFoundError as error:
        text = f"{error.filename or place}: no such file; an adapter is a folder written by `pft train` or by peft"
        raise MissingError(text) from None
    except OSError as error:
        text = f"{place}: cannot be read ({str(error.strerror or error).splitlines()[0]})"
        raise (UnreachableError if place.startswith(BUCKET_SCHEME) else UserError)(text) from None


def object_store(place: str) -> tuple[Any, str]:
    """Return pyarrow's file system and the path in it; credentials and endpoint are AWS' environment variables."""
    path = place.removeprefix(BUCKET_SCHEME).rstrip("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return _bucket(path.partition("/")[0], endpoint), path


@functools.lru_cache(maxsize=16)  # each has connections of its own, which are kept
def _bucket(name: str, endpoint: str | None) -> Any:
    from pyarrow.fs import FileSystem, S3FileSystem

    if not endpoint:
        return FileSystem.from_uri(f"{BUCKET_SCHEME}{name}")[0]
    scheme, _, host = endpoint.rstrip("/").rpartition("://")
    return S3FileSystem(endpoint_override=host, scheme=scheme or "https")


def etags(place: str, names: Sequence[str]) -> tuple[bytes, ...]:
    """Return what identifies the content of files in a bucket. Raises UserError.

    Sizes of two adapters are the same, and a bucket's times are whole seconds.
    """
    found = []
    for name in names:
        with reading(f"{place}/{name}"):
            files, path = object_store(f"{place}/{name}")
            with files.open_input_file(path) as file:
                found.append(file.metadata()["ETag"])
    return tuple(found)


# --- MLflow's registry


def download(place: str, path: str, folder: Path, *, registry: str | None) -> Path:
    """Copy a file of a registered version, at models:/NAME/VERSION, into a folder. Raises UserError."""
    # quiet: a bar for each file would fill the server's log
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    name, _, version = place.removeprefix(REGISTRY_SCHEME).partition("/")
    with settings(place, registry) as (client, uri):
        from mlflow.artifacts import download_artifacts

        # Of a models:/ address MLflow asks the process' own registry, whatever it is told.
        source = client.get_model_version_download_uri(name, version)
        found = download_artifacts(artifact_uri=f"{source.rstrip('/')}/{path}", dst_path=str(folder), tracking_uri=uri)
    return Path(found).rename(folder / Path(path).name)


@contextmanager
def settings(place: str, registry: str | None) -> Iterator[tuple[Any, str]]:
    """Give MLflow's client and its URI. Raises UserError for what it does not have, and where it does not answer."""
    quiet_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(registry, Path("runs"))
    path = sqlite_path(uri)
    if path is not None and not path.is_file():  # MLflow would make an empty one
        raise UserError(f"store.registry={uri}: no such file: give the URI that `pft train` tracked to")
    try:
        with opening(uri):
            client = MlflowClient(tracking_uri=uri)
        yield client, uri
    except (MlflowException, OSError) as error:
        reason = mask_credentials(str(error) or type(error).__name__).splitlines()[0]
        absent = getattr(error, "error_code", None) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
        text = f"{place}: not in the registry {mask_credentials(uri)} ({reason})"
        raise (UserError if absent else UnreachableError)(text) from None
