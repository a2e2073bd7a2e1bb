"""Reports of progress from long work to its caller, who may show them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Reports how many steps of a stage are done, with figures such as losses; it does not block."""

    def __call__(self, done: int, facts: Mapping[str, float] = ..., /) -> None: ...


Stage = Callable[[str, int], AbstractContextManager[Advance]]  # opens a stage by its name and number of steps


@contextmanager
def unwatched(name: str, total: int) -> Iterator[Advance]:
    """Open a stage that nobody watches."""
    yield lambda *_: None
