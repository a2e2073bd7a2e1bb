"""API keys: random, kept as hashes, compared in constant time, each with its own pace.

A key has 256 random bits, so that a plain SHA-256 is as good as a slow hash: there is nothing to guess.
"""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, PositiveInt

from pft_core.artifacts import read_json, write_json
from pft_core.errors import UserError
from pipelines.config import Section
from pipelines.strict import build

PREFIX = "pft-"
RELOAD_S = 2.0


class Key(Section):
    """Whose key it is, its SHA-256, and how many requests a minute it may make; None: as many as the recipe says."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    requests_per_minute: PositiveInt | None = None


class KeyFile(Section):
    keys: list[Key]


def add_key(file: Path, name: str, *, requests_per_minute: int | None = None) -> str:
    """Make a key, write its hash, and return it: it is shown once and stands nowhere. Raises UserError."""
    known = read_keys(file) if file.exists() else []
    if any(key.name == name for key in known):
        raise UserError(f"{file}: {name!r} has a key already: remove its entry first, or take another name")
    secret = PREFIX + secrets.token_urlsafe(32)
    raw = {"name": name, "sha256": _sha256(secret), "requests_per_minute": requests_per_minute}
    added = build(KeyFile, {"keys": [*(key.model_dump() for key in known), raw]})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    write_json(file, added.model_dump())
    file.chmod(0o600)
    return secret


def read_keys(file: Path) -> list[Key]:
    """Read a file of keys. Raises UserError."""
    return build(KeyFile, read_json(file, what="keys written by `pft key`"), source=lambda _: f"{file}: ").keys


class KeyRing:
    """The keys of a file, read again when it changes, so that a key can be withdrawn while the server runs."""

    def __init__(self, file: Path):
        self._file = file
        self._checked, self._stamp = 0.0, (0, 0)
        self._keys = read_keys(file)
        if not self._keys:
            raise UserError(f"{file}: holds no key: make one with `pft key`")

    def owner(self, secret: str) -> Key | None:
        """Return whose key this is. Every entry is compared, so that the time tells nothing."""
        self._reload()
        digest = _sha256(secret)
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        return found[0] if found else None

    def _reload(self) -> None:
        if time.monotonic() - self._checked < RELOAD_S:
            return
        self._checked = time.monotonic()
        try:
            stat = os.stat(self._file)
            if self._stamp != (stat.st_mtime_ns, stat.st_ino):
                self._keys = read_keys(self._file)
                self._stamp = (stat.st_mtime_ns, stat.st_ino)
        except (OSError, UserError):
            return  # half-edited: the keys that were known stay


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
    except (binascii.Error, UnicodeDecodeError):
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
