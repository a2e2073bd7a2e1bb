"""Digests, and files and folders that a reader sees whole or not at all, also after a kill or a power failure.

What is being written lies in a hidden folder beside its target, `.<name>.<node>-<random>.tmp`, which its process locks:
the next writer of the same target removes those that nobody holds any more. A folder that is replaced waits as
`.<name>.replaced` until the new one has its place; `restore_folder` puts it back where a kill came between.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pft_core.errors import UserError

_UNFINISHED = ".tmp"
_LONGEST_NAME = 200  # bytes, of the 255 that file systems allow


def digest(content: Any) -> str:
    """Return 16 hex digits of the sha256 of JSON-like content; key order does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any, *, allow_nan: bool = True) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part of it.

    allow_nan: whether NaN and infinities may stand in it, which readers other than Python's take for no JSON.
    """
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=allow_nan) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never a part of it."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def read_json(path: Path, *, what: str) -> Any:
    """Read a JSON object. Raises UserError that names the file and what it should have been."""
    if not path.is_file():  # opened, a named pipe would wait for somebody who writes
        raise UserError(f"{path}: no such file; expected {what}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:  # gone meanwhile
        raise UserError(f"{path}: no such file; expected {what}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid JSON (nested too deep); expected {what}") from None
    except ValueError as error:  # of the text, its encoding, or a number of thousands of digits
        raise UserError(f"{path}: not valid JSON ({error}); expected {what}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: no JSON object of keys and values; expected {what}")
    return found


def contents(folder: Path) -> list[Path]:
    """Return what is in a folder, less what is being written there or was left half-written by a kill."""
    return [path for path in folder.iterdir() if not (path.name.startswith(".") and path.suffix == _UNFINISHED)]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; the file takes the place of `path` at the end, when it is on the disk.

    After an exception, or a kill at any point, what was at `path` is there still.
    """
    with _workplace(path) as hidden:
        yield hidden / path.name
        _sync(hidden / path.name)
        os.replace(hidden / path.name, path)
        _sync(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to write in; it takes the place of `path` at the end, when all of it is on the disk.

    After an exception the old folder is at `path` still. After a kill the old or the new one is, or the old one waits
    beside it for `restore_folder`, which whoever writes `path` again calls before reading it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _workplace(path) as hidden:
        new = hidden / path.name
        new.mkdir()
        yield new
        _put(new, path, hidden)


def replace_folder(new: Path, path: Path) -> None:
    """Give a folder that is written the place of another on the same disk, as safely as `whole_folder` does."""
    with _workplace(path) as hidden:
        _put(new, path, hidden)


def remove_folder(path: Path) -> None:
    """Delete a folder; it loses its name first, so that nothing half-deleted is ever found under it."""
    with _workplace(path) as hidden:
        os.rename(path, hidden / path.name)


def refuse_unwritable(folder: Path) -> None:
    """Say, before anything is done for it, that a folder cannot be written. Raises UserError; leaves nothing behind."""
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "is no folder")
        os.path.lexists(folder) and folder.resolve()  # a loop of links
        (folder / "x").lstat()  # a name that is too long
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError) as error:
        raise _unwritable(folder, error) from None
    above = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), Path("/"))
    try:
        tempfile.TemporaryDirectory(dir=above, prefix=".", suffix=_UNFINISHED).cleanup()
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or "a loop of links"
    return UserError(f"{folder}: cannot be written ({reason}): choose another folder")


def restore_folder(path: Path) -> None:
    """Clear up after a kill: put back the old folder where no new one has its place, and remove what else was left."""
    left = [_replaced(path), _moving(path)]
    if path.parent.is_dir() and (any(map(os.path.lexists, left)) or _unfinished(path)):
        with _workplace(path) as hidden, _alone(path):
            _settle(path, hidden)


def _put(new: Path, path: Path, hidden: Path) -> None:
    """Move the new folder to `path`, and what was there into `hidden`."""
    for part in [*new.rglob("*"), new]:
        _sync(part)
    with _alone(path):
        _settle(path, hidden)
        if os.path.lexists(path):
            os.rename(path, _replaced(path))
        try:
            os.rename(new, path)
            _sync(path.parent)
        finally:
            _settle(path, hidden)


def _settle(path: Path, hidden: Path) -> None:
    """Put the replaced folder back where nothing has taken its place, else away to be deleted."""
    if os.path.lexists(_replaced(path)):
        os.rename(_replaced(path), hidden / secrets.token_hex(4) if os.path.lexists(path) else path)


def _replaced(path: Path) -> Path:
    return path.with_name(f".{_brief(path.name)}.replaced")


def _moving(path: Path) -> Path:
    return path.with_name(f".{_brief(path.name)}.moving")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time move folders to and from `path`."""
    while True:
        with _locked(_moving(path), flags=os.O_RDWR | os.O_CREAT) as lock:
            # Between opening and locking, the holder may have finished and removed the file: then this is no lock.
            if lock.is_there():
                try:
                    yield
                finally:
                    _moving(path).unlink(missing_ok=True)
                return


@contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """Give a hidden folder beside `path`, locked and deleted at the end; those of processes that were killed go too."""
    for left in _unfinished(path):
        with suppress(FileNotFoundError), _locked(left, wait=False) as lock:
            if lock.is_held:
                shutil.rmtree(left, ignore_errors=True)
    with ExitStack() as stack:
        yield _new_folder(path, stack)


def _new_folder(path: Path, stack: ExitStack) -> Path:
    while True:
        hidden = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=_UNFINISHED, dir=path.parent))
        stack.callback(shutil.rmtree, hidden, ignore_errors=True)
        with suppress(FileNotFoundError):  # before it was locked, another has taken it for a leftover
            if stack.enter_context(_locked(hidden)).is_there():
                return hidden


def _unfinished(path: Path) -> list[Path]:
    return [p for p in path.parent.iterdir() if p.name.startswith(_prefix(path)) and p.suffix == _UNFINISHED]


def _prefix(path: Path) -> str:
    # The node counts: locks on a shared disk may not be seen by other nodes.
    return f".{_brief(path.name)}.{digest(os.uname().nodename)[:6]}-"


def _brief(name: str) -> str:
    """Return a name that leaves room for what a hidden one has beside it; a digest keeps long ones apart."""
    return name if len(os.fsencode(name)) <= _LONGEST_NAME else digest(os.fsencode(name).hex())


@dataclass(frozen=True)
class _Lock:
    """A file or folder that was opened; is_held: not where another process holds it, nor on a disk without locks."""

    path: Path
    descriptor: int
    is_held: bool

    def is_there(self) -> bool:
        """Return whether the path still leads to what was opened."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except FileNotFoundError:
            return False


@contextmanager
def _locked(path: Path, *, flags: int = os.O_RDONLY, wait: bool = True) -> Iterator[_Lock]:
    """Hold a file or folder until the block or the process ends."""
    descriptor = os.open(path, flags, 0o666)
    try:
        yield _Lock(path, descriptor, _lock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)))
    finally:
        _lock(descriptor, fcntl.LOCK_UN)  # by itself it would last as long as a process that was forked meanwhile
        os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except OSError:  # held by another process, or not to be had on this disk
        return False
    return True


def _sync(path: Path) -> None:
    """Return when a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text a line, whole or not at all."""
    write_text(path, "".join(f"{line}\n" for line in lines))
