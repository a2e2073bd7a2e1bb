"""Digests and atomic writes: a reader sees a file or folder whole or not at all, even after a kill or a power failure.

A write goes to a hidden folder beside its target, `.<name>.<node>-<random>.tmp`, which the writing process locks. The
next writer of the same target deletes such folders that no process locks any longer. A folder that is being replaced
is renamed to `.<name>.replaced` until the new one is in place; after a kill in between, `restore_folder` puts it back.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pft_core.errors import UserError

_UNFINISHED = ".tmp"
_MAX_NAME_BYTES = 200  # file systems allow 255; the rest is for the affixes of hidden names


def digest(content: Any) -> str:
    """Return the first 16 hex digits of the sha256 of JSON-like content; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, which is read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any, *, allow_nan: bool = True) -> None:
    """Write JSON so that a reader sees the old file or the new one, never part of it.

    allow_nan: whether the content may hold NaN and infinities, which Python reads but other JSON readers reject.
    """
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=allow_nan) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old file or the new one, never part of it."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def read_json(path: Path, *, what: str) -> Any:
    """Read a JSON object from a file.

    what: the expected content, for the message. Raises UserError if the file is missing or holds anything else.
    """
    if not path.is_file():  # opening a named pipe would block until another process writes to it
        raise UserError(f"{path}: no such file; expected {what}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:  # deleted since the check above
        raise UserError(f"{path}: no such file; expected {what}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid JSON (nested too deep); expected {what}") from None
    except ValueError as error:  # bad syntax, bad encoding, or a number with thousands of digits
        raise UserError(f"{path}: not valid JSON ({error}); expected {what}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; expected {what}")
    return content


def contents(folder: Path) -> list[Path]:
    """Return the entries of a folder without unfinished writes, whether in progress or left by a kill."""
    return [path for path in folder.iterdir() if not (path.name.startswith(".") and path.suffix == _UNFINISHED)]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; at the end of the block, once the file is on disk, it replaces `path`.

    After an exception, or a kill before that, `path` still holds its old content.
    """
    with _workplace(path) as hidden:
        yield hidden / path.name
        _sync(hidden / path.name)
        os.replace(hidden / path.name, path)
        _sync(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write in; at the end of the block, once it is on disk, it replaces `path`.

    After an exception, `path` still holds the old folder. After a kill, `path` holds the old or the new folder, or the
    old one lies beside it for `restore_folder`. A job that resumes work at `path` calls that before it reads `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _workplace(path) as hidden:
        new = hidden / path.name
        new.mkdir()
        yield new
        _put(new, path, hidden)


def replace_folder(new: Path, path: Path) -> None:
    """Move a finished folder over another one on the same disk, as safely as `whole_folder` does."""
    with _workplace(path) as hidden:
        _put(new, path, hidden)


def remove_folder(path: Path) -> None:
    """Delete a folder. It is renamed first, so that a reader never sees it half-deleted."""
    with _workplace(path) as hidden:
        os.rename(path, hidden / path.name)


def refuse_unwritable(folder: Path) -> None:
    """Raise UserError if a folder cannot be written, before any work is done for it. Leaves nothing behind."""
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder")
        os.path.lexists(folder) and folder.resolve()  # fails for a loop of symbolic links
        (folder / "x").lstat()  # fails for a name that is too long
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
    reason = getattr(error, "strerror", None) or "a loop of symbolic links"
    return UserError(f"{folder}: cannot be written ({reason}): choose another folder")


def restore_folder(path: Path) -> None:
    """Clean up after a kill: put the old folder back if no new one replaced it, and delete all other leftovers."""
    leftovers = [_replaced(path), _moving(path)]
    if path.parent.is_dir() and (any(map(os.path.lexists, leftovers)) or _unfinished(path)):
        with _workplace(path) as hidden, _alone(path):
            _settle(path, hidden)


def _put(new: Path, path: Path, hidden: Path) -> None:
    """Move the new folder to `path`, and the old one into `hidden`."""
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
    """Move the replaced folder back if nothing is at `path`, else into `hidden`, which will be deleted."""
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
            # The holder may have finished and deleted the file between our open and our lock; then we hold nothing.
            if lock.is_there():
                try:
                    yield
                finally:
                    _moving(path).unlink(missing_ok=True)
                return


@contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """Yield a hidden, locked folder beside `path`, and delete it at the end; first delete those of killed processes."""
    for leftover in _unfinished(path):
        with suppress(FileNotFoundError), _locked(leftover, wait=False) as lock:
            if lock.is_held:
                shutil.rmtree(leftover, ignore_errors=True)
    with ExitStack() as stack:
        yield _new_folder(path, stack)


def _new_folder(path: Path, stack: ExitStack) -> Path:
    while True:
        hidden = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=_UNFINISHED, dir=path.parent))
        stack.callback(shutil.rmtree, hidden, ignore_errors=True)
        with suppress(FileNotFoundError):  # another writer took it for a leftover before it was locked
            if stack.enter_context(_locked(hidden)).is_there():
                return hidden


def _unfinished(path: Path) -> list[Path]:
    return [p for p in path.parent.iterdir() if p.name.startswith(_prefix(path)) and p.suffix == _UNFINISHED]


def _prefix(path: Path) -> str:
    # The name holds the node, as other nodes may not see locks on a shared disk.
    return f".{_brief(path.name)}.{digest(os.uname().nodename)[:6]}-"


def _brief(name: str) -> str:
    """Return a name that leaves room for the affixes of a hidden name; long names become digests."""
    return name if len(os.fsencode(name)) <= _MAX_NAME_BYTES else digest(os.fsencode(name).hex())


@dataclass(frozen=True)
class _Lock:
    """An open file or folder. is_held: False if another process holds the lock, or the disk supports no locks."""

    path: Path
    descriptor: int
    is_held: bool

    def is_there(self) -> bool:
        """Return whether the path still leads to the opened file or folder."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except FileNotFoundError:
            return False


@contextmanager
def _locked(path: Path, *, flags: int = os.O_RDONLY, wait: bool = True) -> Iterator[_Lock]:
    """Lock a file or folder until the block or the process ends."""
    descriptor = os.open(path, flags, 0o666)
    try:
        yield _Lock(path, descriptor, _lock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)))
    finally:
        _lock(descriptor, fcntl.LOCK_UN)  # closing alone would leave it locked by a child that was forked meanwhile
        os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except OSError:  # another process holds it, or the disk supports no locks
        return False
    return True


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file, one line per text, whole or not at all."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_checked_lines(path: Path, lines: Sequence[str]) -> None:
    """Write lines with their digest, for `read_checked_lines`."""
    write_lines(path, [digest(lines), *lines])


def read_checked_lines(path: Path) -> list[str] | None:
    """Return the lines that `write_checked_lines` wrote; None if the file is missing, unreadable or damaged."""
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    return lines if first == digest(lines) else None
