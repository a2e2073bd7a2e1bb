"""A user's mistake, found again inside what Ray and libraries wrap around it."""

import errno
import os
import re

from pft_core.errors import UserError

QUALIFIED_NAME = re.escape(f"{UserError.__module__}.{UserError.__qualname__}")  # as a traceback writes it
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# What a path or a disk can refuse; a missing file is not among them, since that may as well be our mistake.
DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.EBUSY, errno.EXDEV, errno.ELOOP, errno.EPERM,
}  # fmt: skip


def unwrap_user_error(error: BaseException) -> UserError | None:
    """Find the user's mistake inside what Ray wraps around an exception of a task or worker; None if there is none.

    A full or forbidden disk is a mistake of this kind too, wherever it shows.
    """
    inside = [error]
    for inner in inside:  # grows while it is walked
        inside += [cause for cause in _causes(inner) if all(cause is not known for known in inside)]
    return next((m for find in (_raised, _quoted) for inner in inside if (m := find(inner))), None)


def _causes(error: BaseException) -> list[BaseException]:
    """Exceptions in an exception: Python's own chain, and the causes in Ray's task, worker and controller errors."""
    inner = [error.__cause__, error.__context__, *getattr(error, "worker_failures", {}).values()]
    inner += [getattr(error, name, None) for name in ("cause", "controller_failure", "_base_exc")]
    return [e for e in inner if isinstance(e, BaseException)]


def _raised(error: BaseException) -> UserError | None:
    # Ray raises a class made of RayTaskError and the cause's own class: its text is a traceback, the cause's is not.
    if isinstance(error, UserError) and not isinstance(getattr(error, "cause", None), BaseException):
        return error
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        if error.errno in FULL_DISK:  # Arrow says it in words of its own
            said = f"{os.strerror(error.errno)}: make room there"
        else:
            said = f"{error.strerror}: check the path"
        return UserError(f"{error.filename or 'disk'}: {said}, or choose another folder")
    return None


def _quoted(error: BaseException) -> UserError | None:
    # Ray Data and actors that die at birth hand the cause over as the text of its traceback only.
    found = re.search(rf"^{QUALIFIED_NAME}: (.+?)(?:\n\n|\Z)", str(error), re.MULTILINE | re.DOTALL)
    if found:
        return UserError(found[1])
    # safetensors and torch do not raise an OSError for it.
    if any(os.strerror(number) in str(error) for number in FULL_DISK):
        return UserError("no space left on the disk: make room, or choose another folder")
    return None
