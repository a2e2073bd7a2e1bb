"""End a verb within ten seconds of Ctrl-C or SIGTERM: mark its runs, print one line, exit with 130 or 143.

The first signal raises KeyboardInterrupt in the main thread, which closes open files and runs on its way out. A library
may swallow the exception, or wait for something that never comes: if the verb is still alive some seconds later,
another thread finishes the cleanup and ends the process. Later signals are ignored, since a terminal and `timeout` send
several.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pipelines.console import console

UNWIND_S = 3.0  # for the main thread to leave the verb
CLOSE_S = 3.0  # for closing one tracked run, a part of CLEANUP_S
CLEANUP_S = 5.0  # for the cleanup after that, before the process ends anyway
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class _Verb:
    """The verb that this process runs. marks: what to call if it is interrupted, outer blocks first."""

    is_watched: bool = False
    received: int | None = None
    marks: list[Callable[[], str]] = field(default_factory=list)
    message: str = ""
    marking_lock: Any = field(default_factory=threading.RLock)
    ending_lock: Any = field(default_factory=threading.Lock)


_verb = _Verb()


@contextmanager
def catching_signals() -> Iterator[None]:
    """Let the first SIGINT or SIGTERM interrupt the block, even if a shell script started it with SIGINT ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _verb.is_watched = True
    try:
        keep_catching()
        yield
    finally:
        _verb.is_watched = False
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def keep_catching() -> None:
    """Restore the handlers after a library has replaced them, in a process that runs a verb."""
    if _verb.is_watched and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: Any) -> None:
    if _verb.received is None:
        _verb.received = number
        threading.Thread(target=_end_late, name="interruption", daemon=True).start()
        raise KeyboardInterrupt


def is_interrupted() -> bool:
    """Return whether a signal has arrived; a library may turn it into any exception, or none."""
    return _verb.received is not None


def stop_if_interrupted() -> None:
    """Raise KeyboardInterrupt if an earlier one was swallowed."""
    if is_interrupted():
        raise KeyboardInterrupt


@contextmanager
def on_interruption(mark: Callable[[], str]) -> Iterator[None]:
    """Call `mark` once if the block is interrupted; it returns a message for the user, or "".

    Marks of outer blocks are called first: the next start reads their state first, and time may run out.
    """
    _verb.marks.append(mark)
    try:
        yield
    except BaseException as error:
        if is_interrupted() or isinstance(error, KeyboardInterrupt):
            _mark()
        raise
    finally:
        with suppress(ValueError):
            _verb.marks.remove(mark)


def _mark() -> None:
    with _verb.marking_lock:  # the other thread may be marking
        while _verb.marks:
            mark = _verb.marks.pop(0)
            with suppress(Exception):  # the verb ends even if a mark fails
                message = mark()
                _verb.message = _verb.message or message


def end_interrupted() -> NoReturn:
    """End this process and the Ray that it started: call the marks that are left, and print one line."""
    if not _verb.ending_lock.acquire(blocking=False):
        time.sleep(2 * CLEANUP_S)  # the other thread ends the process
    last = threading.Timer(CLEANUP_S, _exit)
    last.daemon = True
    last.start()
    _mark()
    stop_ray()
    _exit()


def stop_ray() -> str:
    """Leave the cluster, or end the Ray that this process started, with all its work.

    As a mark it comes first, since the other marks need the cores.
    """
    if ray := sys.modules.get("ray"):
        with suppress(Exception):
            ray.shutdown()
    return ""


def _end_late() -> None:
    time.sleep(UNWIND_S)
    end_interrupted()


def _exit() -> NoReturn:
    number = _verb.received or signal.SIGINT
    with suppress(Exception):
        console.hide_line()  # which also shows the cursor again
    print(
        f"interrupted by {signal.Signals(number).name}: {_verb.message or 'run the same command to start again'}",
        file=sys.stderr,
        flush=True,
    )
    # Immediately: the exit handlers of libraries take long without a cluster, or crash with a C++ stack trace.
    os._exit(128 + number)
