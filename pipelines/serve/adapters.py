"""Adapters by content: `name@sha12`, where the digits are of the files themselves.

A node keeps copies in a folder that all its processes share. A copy is checked against the digest in its id before
anyone sees it, so an id means the same weights on every node and for ever, whatever happens at the place it came from.
"""

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from pft_core.artifacts import digest
from pft_core.errors import UserError
from pft_core.soup import interpolate_adapters
from pipelines.serve.engine import LoadedAdapter

DIGITS = 12
ADAPTER_ID = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]{0,63})(?:@(?P<version>[0-9a-z][0-9a-z_-]{0,63}))?")
SHA = re.compile(rf"[0-9a-f]{{{DIGITS}}}")
REGISTRY_SCHEME = "models:/"
ADAPTER_FILES = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)


@dataclass(frozen=True)
class Source:
    """An adapter and where its files are: a folder or an s3:// address with the two files of a LoRA adapter."""

    id: str
    place: str


@dataclass(frozen=True)
class Blend:
    """An adapter to be made: the first's weight is `first_weight`, the second's the rest."""

    id: str
    first: Source
    second: Source
    first_weight: float


AdapterSource = Source | Blend


def blend(first: Source, second: Source, first_weight: float, *, name: str) -> AdapterSource:
    """Name the adapter between two; its digits are those of its recipe, as the same parts give the same bytes."""
    if first_weight in (0, 1):
        return first if first_weight == 1 else second
    digits = digest([first.id, second.id, round(first_weight, 6)])[:DIGITS]
    return Blend(f"{name}-{first_weight:.2f}@{digits}", first, second, first_weight)


def content_digits(folder: Path) -> str:
    """Return the 12 hex digits of an adapter's files: weights, and the config that scales them."""
    sha = hashlib.sha256()
    for name in ADAPTER_FILES:
        with (folder / name).open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()[:DIGITS]


class AdapterCache:
    """Copies of adapters on this node's disk, at most `most` of them, the least recently used going first.

    Folders are named by their digits. A process that uses a copy holds a shared lock on it, which ends with the
    process, however it ends; nobody removes a copy that is held.
    """

    def __init__(self, folder: Path, *, most: int, registry: str | None = None):
        """registry: MLflow's URI, for adapters at models:/NAME/VERSION."""
        self._folder, self._most, self._registry = folder, most, registry
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def held(self, source: AdapterSource) -> Iterator[LoadedAdapter]:
        """Give the adapter, fetched or made where it is not here yet; it stays on disk within the context.

        Raises UserError where its place holds nothing, something else than the id says, or parts that do not add up.
        """
        digits = source.id.rpartition("@")[2]
        target = self._folder / digits
        with self._lock(digits, exclusive=False):
            if not target.is_dir():
                self._make(source, target)
                self._evict()
            os.utime(target)
            yield LoadedAdapter(source.id, target)

    def _make(self, source: AdapterSource, target: Path) -> None:
        unfinished = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            if isinstance(source, Blend):
                with self.held(source.first) as first, self.held(source.second) as second:
                    parts = [(first.folder, source.first_weight), (second.folder, 1 - source.first_weight)]
                    interpolate_adapters(parts, unfinished)
            else:
                fetch(source.place, unfinished, registry=self._registry)
                _refuse_other_content(source, unfinished)
            try:
                unfinished.rename(target)
            except OSError:  # another process was first: the same digits are the same content
                if not target.is_dir():
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _evict(self) -> None:
        copies = [path for path in self._folder.iterdir() if SHA.fullmatch(path.name)]
        for path in sorted(copies, key=_last_use)[: max(0, len(copies) - self._most)]:
            try:
                with self._lock(path.name, exclusive=True):
                    shutil.rmtree(path, ignore_errors=True)
            except BlockingIOError:
                continue  # in use

    @contextmanager
    def _lock(self, digits: str, *, exclusive: bool) -> Iterator[None]:
        with (self._folder / f".{digits}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
            yield


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process removed it
        return 0.0


class OtherContentError(UserError):
    """A place holds another adapter than it did when its id was read."""


def _refuse_other_content(source: Source, folder: Path) -> None:
    found, wanted = content_digits(folder), source.id.rpartition("@")[2]
    if found != wanted:
        raise OtherContentError(f"{source.id}: its place holds the adapter @{found} by now: ask for it by that name")


def fetch(place: str, folder: Path, *, registry: str | None = None) -> Path:
    """Copy an adapter's two files into a new folder. Raises UserError where they are not there."""
    if place.startswith(REGISTRY_SCHEME):
        return _downloaded(f"{place}/adapter", folder, registry=registry)
    folder.mkdir(parents=True)
    for name in ADAPTER_FILES:
        with opened(f"{place.rstrip('/')}/{name}") as file, (folder / name).open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
    return folder


def _downloaded(place: str, folder: Path, *, registry: str | None) -> Path:
    """Download a folder below models:/NAME/VERSION from the registry's artifact store."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    scratch = folder.with_name(f"{folder.name}.download")
    try:
        scratch.mkdir(parents=True)
        found = download_artifacts(artifact_uri=place, dst_path=str(scratch), tracking_uri=registry)
        Path(found).rename(folder)
    except (MlflowException, OSError) as error:
        raise UserError(f"{place}: cannot be read from the registry ({str(error).splitlines()[0]})") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


@contextmanager
def opened(place: str) -> Iterator[Any]:
    """Open a file on disk or at an s3:// address for reading. Raises UserError where it is not there."""
    if not place.startswith("s3://"):
        if not Path(place).is_file():
            raise UserError(f"{place}: no such file; an adapter is a folder written by `pft train` or by peft")
        with Path(place).open("rb") as file:
            yield file
        return
    files, path = object_store(place)
    try:
        with files.open_input_stream(path) as file:
            yield file
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({str(error).splitlines()[0]})") from None


def object_store(place: str) -> tuple[Any, str]:
    """Return pyarrow's file system and the path in it; credentials and endpoint are AWS' environment variables."""
    from pyarrow.fs import FileSystem, S3FileSystem

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        files, path = FileSystem.from_uri(place)
        return files, path
    scheme, _, host = endpoint.rpartition("://")
    return S3FileSystem(endpoint_override=host, scheme=scheme or "https"), place.removeprefix("s3://")
