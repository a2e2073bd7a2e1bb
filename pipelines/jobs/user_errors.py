"""Find a UserError inside the exceptions that Ray and libraries wrap around it."""

import errno
import os
import re

from pft_core.errors import UserError

QUALIFIED_NAME = re.escape(f"{UserError.__module__}.{UserError.__qualname__}")  # as written in a traceback
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# Errors of paths and disks. A missing file is not among them, since it may be a bug of ours.
DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.EBUSY, errno.EXDEV, errno.ELOOP, errno.EPERM,
}  # fmt: skip


def unwrap_user_error(error: BaseException) -> UserError | None:
    """Return the UserError inside an exception of a Ray task or worker; None if there is none.

    A full or read-only disk counts as a UserError too.
    """
    inside = [error]
    for inner in inside:  # the list grows during the loop
        inside += [cause for cause in _causes(inner) if all(cause is not known for known in inside)]
    return next((m for find in (_raised, _quoted) for inner in inside if (m := find(inner))), None)


def _causes(error: BaseException) -> list[BaseException]:
    """Return the exceptions in an exception: Python's chain, and the causes in Ray's errors."""
    inner = [error.__cause__, error.__context__, *getattr(error, "worker_failures", {}).values()]
    inner += [getattr(error, name, None) for name in ("cause", "controller_failure", "_base_exc")]
    return [e for e in inner if isinstance(e, BaseException)]


def _raised(error: BaseException) -> UserError | None:
    # Ray raises a class derived from RayTaskError and the cause's class. Its text is a traceback; the cause's is not.
    if isinstance(error, UserError) and not isinstance(getattr(error, "cause", None), BaseException):
        return error
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        if error.errno in FULL_DISK:  # Arrow has its own strerror
            fault = f"{os.strerror(error.errno)}: free some space there"
        else:
            fault = f"{error.strerror}: check the path"
        return UserError(f"{error.filename or 'disk'}: {fault}, or choose another folder")
    return None


def _quoted(error: BaseException) -> UserError | None:
    # Ray Data, and actors that fail in their constructor, pass on only the text of the traceback.
    match = re.search(rf"^{QUALIFIED_NAME}: (.+?)(?:\n\n|\Z)", str(error), re.MULTILINE | re.DOTALL)
    if match:
        return UserError(match[1])
    # safetensors and torch do not raise an OSError for a full disk.
    if any(os.strerror(number) in str(error) for number in FULL_DISK):
        return UserError("no space left on the disk: free some space, or choose another folder")
    return None
