"""A lock that lets one process at a time write a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from pft_core.errors import UserError


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Lock a folder against other processes; the lock ends with the process. Raises UserError if it is taken."""
    path = _lock_path(run_dir)
    with _parents(path), _lock_file(path, run_dir) as file:
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {os.uname().nodename}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def is_locked(run_dir: Path) -> bool:
    """Return whether a process holds the folder's lock; the file of a killed process is left behind without one."""
    try:
        with _lock_path(run_dir).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released as the file is closed
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _lock_path(run_dir: Path) -> Path:
    return run_dir.with_name(f".{run_dir.name}.lock")


@contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Create the folders above a path; afterwards remove those that are empty. Raises UserError."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if path.parent.is_dir():
            raise
        raise UserError(f"{path.parent}: cannot be created ({error.strerror}): choose another folder") from None
    finally:
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()


def _lock_file(path: Path, run_dir: Path) -> TextIO:
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            with file:
                raise UserError(
                    f"{run_dir}: another process ({file.read().strip()}) is writing this folder: "
                    "wait for it, or stop it and run the command again to continue its work"
                ) from None
        # Between open and lock, the holder may have finished and removed the file; then this file locks nothing.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()
