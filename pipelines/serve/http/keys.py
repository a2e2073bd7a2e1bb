"""API keys: random, stored as hashes, compared in constant time, each with its own rate limit.

A key has 256 random bits, so a plain SHA-256 is as good as a slow hash: such a key cannot be guessed.
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
    """An API key: its name, its SHA-256, and its requests per minute; None: the recipe's limit."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    requests_per_minute: PositiveInt | None = None


class KeyFile(Settings):
    """The content of a key file."""

    keys: list[Key]

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        for field in ("name", "sha256"):
            values = [getattr(key, field) for key in self.keys]
            if len(set(values)) < len(values):
                raise ValueError(f"two keys have the same {field}: remove one")
        return self


def add_key(file: Path, name: str, *, requests_per_minute: int | None = None) -> str:
    """Create a key, write its hash to the file, and return the key, which is stored nowhere.

    Raises UserError if the name has a key already, or if the file cannot be read or written.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    raw = {"name": name, "sha256": _sha256(secret), "requests_per_minute": requests_per_minute}
    added = build(Key, raw)
    with _lock(file):
        existing = _existing_keys(file)
        if any(key.name == name for key in existing):
            raise UserError(f"{file}: {name!r} has a key already: remove its entry first, or use another name")
        _replace(file, KeyFile(keys=[*existing, added]).model_dump_json(indent=1) + "\n")
    return secret


def _existing_keys(file: Path) -> list[Key]:
    """Return the keys of a file, none if it does not exist. Raises UserError if it cannot be read."""
    if file.exists() and not file.is_file() and not file.is_dir():  # reading a pipe would block
        raise UserError(f"{file}: cannot be read (not a file): set --file to another path")
    return read_keys(file) if file.exists() else []


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Let one process at a time read and write the file, so that keys created at the same time are both kept."""
    try:
        _existing_keys(file)  # raises for a damaged file before the lock is written beside it
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_name(f".{file.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}): set --file to another path") from None


def _replace(file: Path, text: str) -> None:
    """Write a file that only its owner can read, from its first byte on."""
    with whole_file(file) as unfinished:
        unfinished.touch(mode=0o600)
        unfinished.write_text(text, encoding="utf-8")


def read_keys(file: Path) -> list[Key]:
    """Read a key file. Raises UserError, whose message names fields but no values, as one might be a key."""
    return _parse_keys(_read_file(file), file)


def _read_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}): create keys with `pft key`") from None


def _parse_keys(content: bytes, file: Path) -> list[Key]:
    try:
        return KeyFile.model_validate_json(content, strict=True).keys
    except ValidationError as error:
        faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors(include_input=False)]
        texts = [f"{place}: {text}" if place else text for place, text in faults]
        raise UserError(f"{file}: not a key file ({'; '.join(texts[:5])}): create keys with `pft key`") from None


class KeyRing:
    """The keys of a file, which is read again every few seconds, so that a key can be revoked at runtime.

    A missing file has no keys. A damaged file, as while it is edited, changes nothing.
    """

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic):
        """Raises UserError if the file is damaged or has no keys."""
        self._file, self._clock = file, clock
        self._checked_at = clock()
        self._content: bytes | None = _read_file(file)
        self._keys = _parse_keys(self._content, file)
        if not self._keys:
            raise UserError(f"{file}: has no keys: create one with `pft key`")

    def owner(self, secret: str) -> Key | None:
        """Return the entry of a key, or None. Every entry is compared, so that the duration reveals nothing."""
        self._reload()
        digest = _sha256(secret)
        matches = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        return matches[0] if matches else None

    def _reload(self) -> None:
        if self._clock() - self._checked_at < RELOAD_S:
            return
        self._checked_at = self._clock()
        # Compare contents, because file times are too coarse to tell two edits apart.
        if (content := self._current_content()) == self._content:
            return
        self._content = content
        try:
            self._keys = [] if content is None else _parse_keys(content, self._file)
        except UserError as error:  # half-edited
            log.warning("the old keys stay valid: %s", error)

    def _current_content(self) -> bytes | None:
        """Return the file's content; None if it cannot be read, which revokes every key until it can be again."""
        try:
            return _read_file(self._file)
        except UserError as error:
            if self._content is not None:
                log.warning("no key is valid now: %s", error)
            return None


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def secret_in(authorization: str) -> str | None:
    """Return the key in an Authorization header: a Bearer token, as OpenAI's clients send, or a Basic password."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except ValueError:  # not base64 of UTF-8 text
        return None


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class RateLimiter:
    """A token bucket for each key: a minute's requests may come at once, and the bucket refills evenly."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def wait_s(self, name: str, requests_per_minute: int) -> float:
        """Take one request from the bucket and return 0, or return the seconds until there will be one."""
        now = self._clock()
        bucket = self._buckets.setdefault(name, _Bucket(requests_per_minute, now))
        refilled = bucket.tokens + (now - bucket.filled_at) * requests_per_minute / 60
        bucket.tokens, bucket.filled_at = min(float(requests_per_minute), refilled), now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) * 60 / requests_per_minute
        bucket.tokens -= 1
        return 0.0
