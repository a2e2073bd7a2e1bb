"""The open stages of this process and of its workers, and the one line that shows them."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.console import MessageConsole, console
from pipelines.progress.place import Path, Place, Report
from pipelines.progress.texts import Bar, line_of

LINE_EVERY_S = 10.0  # without a terminal
POST_EVERY_S = 0.5
STALE_S = 10.0  # a worker that reported nothing for so long gives the line to another


class Board:
    """Shows the innermost open stage, with the places of the outer ones in front.

    On a terminal the line is live. Elsewhere, and in copies such as a log file, it is printed at most every
    LINE_EVERY_S, and after the first and last step of a stage. In a worker process, the driver shows it instead.
    """

    def __init__(self, to: MessageConsole):
        self._console = to
        self._open: dict[object, Place] = {}
        self._workers: dict[str, tuple[float, Path]] = {}  # the time of the last report, and its stages
        self._followed = ""  # the worker that is shown
        self._path: Path = ()  # read by the thread that draws, without the lock
        self._post: Callable[[Path, bool, bool], object] | None = None
        self._due = 0.0
        self._lock = threading.RLock()

    def put(self, stage: object, place: Place, *, has_moved: bool = False, is_edge: bool = False) -> None:
        """Open a stage, or move it to another place. is_edge: after its first or last step."""
        with self._lock:
            self._open[stage] = place
            self._show(has_moved=has_moved, is_edge=is_edge)

    def close(self, stage: object) -> None:
        with self._lock:
            del self._open[stage]
            self._show()

    def receive(self, report: Report) -> None:
        """Print the message of a worker, or show its stages inside those of this process."""
        if report.path is None:
            origin = f"{report.source}: " if report.source else ""
            return self._console.print(f"{origin}{report.message}", highlight=False, soft_wrap=True)
        with self._lock:
            self._workers.pop(report.source, None)
            if report.path:
                self._workers[report.source] = (time.monotonic(), report.path)
            is_shown = self._follow() == report.source
            self._show(has_moved=report.has_moved and is_shown, is_edge=report.is_edge and is_shown)

    def forget_workers(self) -> None:
        """Drop the stages of all workers, which have ended."""
        with self._lock:
            self._workers.clear()
            self._show()

    @contextmanager
    def posting(self, post: Callable[[Path, bool, bool], object]) -> Iterator[None]:
        """Give the stages of the block to `post`, with has_moved and is_edge, and show nothing here."""
        self._post = post
        try:
            yield
        finally:
            self._post = None

    def _follow(self) -> str:
        """Return the worker to show: the same one as before, unless it has ended or reports no longer."""
        seen_s, _ = self._workers.get(self._followed, (0.0, ()))
        if self._workers and time.monotonic() - seen_s > STALE_S:
            self._followed = next(reversed(self._workers))
        return self._followed

    def _show(self, *, has_moved: bool = False, is_edge: bool = False) -> None:
        _, inside = self._workers.get(self._follow(), (0.0, ()))
        before, self._path = self._path, (*self._open.values(), *inside)
        if self._post is not None:
            is_other = [place.name for place in before] != [place.name for place in self._path]
            if is_other or is_edge or time.monotonic() >= self._due:
                self._post(self._path, has_moved, is_edge)
                self._due = time.monotonic() + POST_EVERY_S
        elif not self._path:
            self._console.hide_line()
        else:
            if not before:  # a short stage without steps prints nothing
                self._due = time.monotonic() + LINE_EVERY_S
            if self._console.has_live_line:
                self._console.show_line(lambda: Bar(self._path) if self._path else "")
            if has_moved:
                self._print(is_edge)

    def _print(self, is_edge: bool) -> None:
        *outer, place = self._path
        is_edge = is_edge and place.total > 1 and all(each.has_inner_edges for each in outer)
        if not is_edge and time.monotonic() < self._due:
            return
        self._due = time.monotonic() + LINE_EVERY_S
        if is_edge or not self._console.has_live_line:
            self._console.print(line_of(self._path), highlight=False, soft_wrap=True)
        else:
            self._console.copy(line_of(self._path))


BOARD = Board(console)
