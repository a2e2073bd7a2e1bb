"""API keys: random, kept as hashes, compared in constant time, each with its own pace.

A key has 256 random bits, so that a plain SHA-256 is as good as a slow hash: there is nothing to guess.
"""

import base64
import fcntl
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field, PositiveInt, ValidationError, model_validator

from pft_core.errors import UserError
from pft_core.files import whole_file
from pft_core.settings import Settings
from pipelines.validated_yaml import build

log = logging.getLogger(__name__)

PREFIX = "pft-"
RELOAD_S = 2.0


class Key(Settings):
    """Whose key it is, its SHA-256, and how many requests a minute it may make; None: as many as the recipe says."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    requests_per_minute: PositiveInt | None = None


class KeyFile(Settings):
    keys: list[Key]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for field in ("name", "sha256"):
            values = [getattr(key, field) for key in self.keys]
            if len(set(values)) < len(values):
                raise ValueError(f"two keys have the same {field}: remove one")
        return self


def add_key(file: Path, name: str, *, requests_per_minute: int | None = None) -> str:
    """Make a key, write its hash, and return it: it is shown once and stands nowhere. Raises UserError."""
    secret = PREFIX + secrets.token_urlsafe(32)
    raw = {"name": name, "sha256": _sha256(secret), "requests_per_minute": requests_per_minute}
    added = build(Key, raw)
    with _writing(file):
        known = _known(file)
        if any(key.name == name for key in known):
            raise UserError(f"{file}: {name!r} has a key already: remove its entry first, or take another name")
        _replace(file, KeyFile(keys=[*known, added]).model_dump_json(indent=1) + "\n")
    return secret


def _known(file: Path) -> list[Key]:
    """Return the keys of a file that may not be there yet. Raises UserError."""
    if file.exists() and not file.is_file() and not file.is_dir():  # a pipe would be waited for
        raise UserError(f"{file}: cannot be read (not a file): give --file another place")
    return read_keys(file) if file.exists() else []


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Let one process at a time read and write the file: of two keys made at once neither may be lost."""
    try:
        _known(file)  # what is wrong with it is said before anything is written beside it
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_name(f".{file.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}): give --file another place") from None


def _replace(file: Path, text: str) -> None:
    """Write a file that its owner alone can read, from its first byte on."""
    with whole_file(file) as unfinished:
        unfinished.touch(mode=0o600)
        unfinished.write_text(text, encoding="utf-8")


def read_keys(file: Path) -> list[Key]:
    """Read a file of keys. Raises UserError, which tells places and never a value: someone may have put a key there."""
    return _keys_in(_content(file), file)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}): make keys with `pft key`") from None


def _keys_in(content: bytes, file: Path) -> list[Key]:
    try:
        return KeyFile.model_validate_json(content, strict=True).keys
    except ValidationError as error:
        faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors(include_input=False)]
        texts = [f"{place}: {text}" if place else text for place, text in faults]
        raise UserError(f"{file}: no file of keys ({'; '.join(texts[:5])}): make keys with `pft key`") from None


class KeyRing:
    """The keys of a file, read again every few seconds, so that a key can be withdrawn while the server runs.

    A file that is gone holds no key; one that is damaged, as while it is edited, changes nothing.
    """

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic):
        """Raises UserError for a file that is damaged, or holds no key."""
        self._file, self._clock = file, clock
        self._checked = clock()
        self._content: bytes | None = _content(file)
        self._keys = _keys_in(self._content, file)
        if not self._keys:
            raise UserError(f"{file}: holds no key: make one with `pft key`")

    def owner(self, secret: str) -> Key | None:
        """Return whose key this is. Every entry is compared, so that the time tells nothing."""
        self._reload()
        digest = _sha256(secret)
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        return found[0] if found else None

    def _reload(self) -> None:
        if self._clock() - self._checked < RELOAD_S:
            return
        self._checked = self._clock()
        # The content itself: times are too coarse to tell two edits apart.
        if (content := self._present()) == self._content:
            return
        self._content = content
        try:
            self._keys = [] if content is None else _keys_in(content, self._file)
        except UserError as error:  # half-edited
            log.warning("the keys stay as they were: %s", error)

    def _present(self) -> bytes | None:
        """Return what the file holds; None where it is gone, or hidden: that withdraws every key until it is back."""
        try:
            return _content(self._file)
        except UserError as error:
            if self._content is not None:
                log.warning("no key is valid now: %s", error)
            return None


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def secret_in(authorization: str) -> str | None:
    """Return the key in an Authorization header: Bearer, as OpenAI clients send it, or a browser's Basic password."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except ValueError:  # neither base64, nor UTF-8, nor ASCII
        return None


@dataclass
class _Bucket:
    tokens: float
    filled: float


class RateLimiter:
    """A token bucket for each key: a minute's requests may come at once, then they come back evenly."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def wait_s(self, name: str, requests_per_minute: int) -> float:
        """Take one request; return 0, or the seconds after which there will be one."""
        now = self._clock()
        bucket = self._buckets.setdefault(name, _Bucket(requests_per_minute, now))
        refilled = bucket.tokens + (now - bucket.filled) * requests_per_minute / 60
        bucket.tokens, bucket.filled = min(float(requests_per_minute), refilled), now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) * 60 / requests_per_minute
        bucket.tokens -= 1
        return 0.0
