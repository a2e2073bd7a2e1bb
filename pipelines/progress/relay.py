"""Messages and progress of worker processes on their way to the driver."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pipelines.console import console
from pipelines.jobs import on_this_node
from pipelines.progress.board import BOARD
from pipelines.progress.place import Path, Report

RECEIVE_EVERY_S = 1.0
LIMIT_S = 5.0  # of one call to the relay


class Relay:
    """An actor between worker processes, which post, and the driver, which takes."""

    def __init__(self) -> None:
        self._reports: list[Report] = []

    async def post(self, report: Report) -> None:
        """Keep a report of a worker until the driver takes it."""
        self._reports.append(report)

    async def reports(self) -> list[Report]:
        """Return the reports since the last call."""
        reports, self._reports = self._reports, []
        return reports


@contextmanager
def relayed(relay: Any, source: str) -> Iterator[None]:
    """Let the driver show the messages and stages of the block, which runs in a worker process.

    source: the name of this worker among those that run at once, "" for the only one.
    """
    import ray

    def post(path: Path, has_moved: bool, is_edge: bool) -> Any:
        return relay.post.remote(Report(source, path=path, has_moved=has_moved, is_edge=is_edge))

    def post_message(text: str) -> None:
        relay.post.remote(Report(source, text))

    try:
        with console.copied_to(post_message), BOARD.posting(post):
            yield
    finally:
        with suppress(ray.exceptions.RayError):  # a lost relay is no reason to fail
            ray.get(post((), False, False), timeout=LIMIT_S)  # calls arrive in order, so all others have


def receive(reports: Sequence[Report]) -> None:
    """Show the reports of workers in the driver."""
    for report in reports:
        BOARD.receive(report)


def forget_workers() -> None:
    """Show no stage of a worker any longer."""
    BOARD.forget_workers()


@contextmanager
def receiving() -> Iterator[Any]:
    """Provide a relay to workers, and show in this process what they post to it while the block runs."""
    import ray

    relay = ray.remote(num_cpus=0, scheduling_strategy=on_this_node())(Relay).remote()
    done = threading.Event()
    thread = threading.Thread(target=_receive_until, args=(relay, done), name="receiving", daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        done.set()
        thread.join()
        forget_workers()


def _receive_until(relay: Any, done: threading.Event) -> None:
    import ray

    call: Any = None
    is_last = False
    while not is_last:
        is_last = done.wait(RECEIVE_EVERY_S) and call is None
        try:
            if not ray.is_initialized():  # an interruption has ended it, and a call would start another
                return
            call = call or relay.reports.remote()
            receive(ray.get(call, timeout=LIMIT_S))
            call = None
        except ray.exceptions.GetTimeoutError:  # the machine is busy: get the same call later, as it took the reports
            is_last = done.is_set()
        except Exception:  # whatever happens to Ray, the work itself meets and explains it
            return
