"""The one exception a user ever sees."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in what the user gave: place, value and what to do. The command line prints it and exits with 2."""


@contextmanager
def said_of(subject: str) -> Iterator[None]:
    """Begin what a UserError says with what it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{subject}: {error}") from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known word, or a list of the known words when none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(known) or 'none'}."
