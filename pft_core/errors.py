"""The only exception that a user sees, and helpers for its message."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in the user's input: the message gives the place, the value and what to do.

    The command line prints the message and exits with code 2.
    """


@contextmanager
def said_of(subject: str) -> Iterator[None]:
    """Put the subject before the message of a UserError that the block raises."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{subject}: {error}") from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest known word, or a list of the known words if none is close."""
    known = sorted(known)
    close = closest(word, known)
    return f" Did you mean {close!r}?" if close else f" Known: {', '.join(known) or 'none'}."


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is closest, None if none is close."""
    return next(iter(difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)), None)
