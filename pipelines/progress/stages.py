"""Open stages of long work: a line or two in the code of each verb."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pft_core.training import Advance
from pipelines.progress.board import BOARD
from pipelines.progress.place import NO_FACTS, Place, Rate


@contextmanager
def stage(name: str, total: int, *, has_inner_edges: bool = False) -> Iterator[Advance]:
    """Show a stage while the block runs; call the result with the number of steps that are done.

    has_inner_edges: whether the stages inside print their first and last steps.
    """
    key, rate, has_moved = object(), Rate(), False

    def advance(done: int, facts: Mapping[str, float] = NO_FACTS, /) -> None:
        nonlocal has_moved
        place = Place(name, done, total, rate.left_s(done, total), dict(facts), has_inner_edges)
        BOARD.put(key, place, has_moved=True, is_edge=not has_moved or done >= total)
        has_moved = True

    BOARD.put(key, Place(name, 0, total, has_inner_edges=has_inner_edges))
    try:
        yield advance
    finally:
        BOARD.close(key)


def counted(data: Any, name: str, total: int) -> Iterator[Any]:
    """Yield the blocks of a Ray Data set, as PyArrow tables, as they come; count their rows in a stage."""
    data.context.enable_progress_bars = False  # Ray Data has its own
    with stage(name, total) as advance:
        done = 0
        # Without prefetching, a finished block does not wait for the next one.
        for table in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield table
            done += table.num_rows
            advance(done)


def streamed(data: Any, name: str, total: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Ray Data set as they come, and count them in a stage."""
    data.context.enable_progress_bars = False  # Ray Data has its own
    with stage(name, total) as advance:
        for number, row in enumerate(data.iter_rows(), start=1):
            yield row
            advance(number)
