"""Continue or restart a job whose code folder is replaced while it runs.

Two raylets on one machine share the folder to which a job's code is unpacked, and which is the current folder of the
job's driver. The second raylet deletes and unpacks it again when it gets its first work. Meanwhile the driver cannot
import further modules, and afterwards it has no current folder for relative paths.
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
    """Change to the new folder of the same name if the current folder was deleted."""
    if _folder() is None:
        with suppress(OSError):
            os.chdir(STARTED_IN)


def missing_code(error: BaseException) -> str | None:
    """Return the file, module or folder of this code whose loss caused the error; None for other errors."""
    for each in _chain(error):
        if isinstance(each, FileNotFoundError) and each.errno == errno.ENOENT and each.filename is None:
            return STARTED_IN  # without a name, it is the current folder
        if isinstance(each, FileNotFoundError) and str(each.filename or "").startswith(f"{CODE}{os.sep}"):
            return str(each.filename)
        if isinstance(each, ModuleNotFoundError) and (CODE / str(each.name).partition(".")[0]) in _packages():
            return str(each.name)
    return None


def _packages() -> set[Path]:
    return {CODE / name for name in ("pft_core", "pipelines", "cluster")}


def _chain(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    # A UserError already describes its cause.
    while each is not None and not isinstance(each, UserError):
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def start_again(missing: str, *, stdout: int) -> None:
    """Replace this process by the same command, whose result goes to `stdout`; return if that was done before."""
    if os.environ.get(STARTED_AGAIN):
        return
    print(
        f"{missing} disappeared because its folder is being unpacked again: restarting the command",
        file=sys.stderr,
        flush=True,
    )
    until = time.monotonic() + UNPACKED_WITHIN_S
    while not (CODE / "pipelines" / "cli.py").is_file() and time.monotonic() < until:
        time.sleep(0.5)
    time.sleep(1.0)  # until the rest of the folder is unpacked
    with suppress(OSError):
        os.chdir(STARTED_IN)  # the new folder of that name, since the current one may be deleted
    os.dup2(stdout, 1)
    os.environ[STARTED_AGAIN] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
