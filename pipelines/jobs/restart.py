"""A job whose code is replaced while it runs goes on in the new folder, or starts once more.

Two raylets of one machine share the folder that the code of a job is unpacked to, and that the job's driver is in: the
second removes it and unpacks it anew when it gets its first work, which is when the driver imports what it has not
imported yet, and has no current folder any more to tell a relative path from.
"""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pft_core.errors import UserError

CODE = Path(__file__).resolve().parents[2]
STARTED_AGAIN = "PFT_STARTED_AGAIN"
UNPACKED_WITHIN_S = 30.0


def _folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


STARTED_IN = _folder() or os.environ.get("PWD", "")


def enter_again() -> None:
    """Go to the folder that has taken the place of the current one, where that is gone."""
    if _folder() is None:
        with suppress(OSError):
            os.chdir(STARTED_IN)


def missing_code(error: BaseException) -> str | None:
    """Return the file, module or folder of this code that is gone, by an error's chain; None for another error."""
    for each in _chain(error):
        if isinstance(each, FileNotFoundError) and each.errno == errno.ENOENT and each.filename is None:
            return STARTED_IN  # only the current folder has no name
        if isinstance(each, FileNotFoundError) and str(each.filename or "").startswith(f"{CODE}{os.sep}"):
            return str(each.filename)
        if isinstance(each, ModuleNotFoundError) and (CODE / str(each.name).partition(".")[0]) in _packages():
            return str(each.name)
    return None


def _packages() -> set[Path]:
    return {CODE / name for name in ("pft_core", "pipelines", "cluster")}


def _chain(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    # What a UserError was made of has been said already, and in its own words.
    while each is not None and not isinstance(each, UserError):
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def start_again(missing: str, *, stdout: int) -> None:
    """Replace this process by the same command, its result going to `stdout`; return where it is the second time."""
    if os.environ.get(STARTED_AGAIN):
        return
    print(f"{missing} is gone, its folder is being unpacked anew: starting once more", file=sys.stderr, flush=True)
    until = time.monotonic() + UNPACKED_WITHIN_S
    while not (CODE / "pipelines" / "cli.py").is_file() and time.monotonic() < until:
        time.sleep(0.5)
    time.sleep(1.0)  # the rest of the folder
    with suppress(OSError):
        os.chdir(STARTED_IN)  # the folder of that name: the one that this process is in may be gone
    os.dup2(stdout, 1)
    os.environ[STARTED_AGAIN] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
