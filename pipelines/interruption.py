"""Ctrl-C and SIGTERM end a verb within ten seconds: what runs is marked, one line says so, the code is 130 or 143.

The first signal raises KeyboardInterrupt in the main thread, and what is open is closed on the way out. A library may
swallow that, or wait for what does not come any more: where the verb has not ended some seconds later, another thread
does what is left to do and ends the process. Further signals change nothing, as a terminal and `timeout` send several.
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

WAY_OUT_S = 3.0
CLOSE_S = 3.0  # for one tracked run, of what is left to do
LAST_S = 5.0  # for what is left to do, when the way out has been too long or has ended
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class _Verb:
    """The verb that this process runs. marks: what is to be done where it is interrupted, of outer blocks first."""

    is_watched: bool = False
    received: int | None = None
    marks: list[Callable[[], str]] = field(default_factory=list)
    told: str = ""
    marking: Any = field(default_factory=threading.RLock)
    ending: Any = field(default_factory=threading.Lock)


_verb = _Verb()


@contextmanager
def catching_signals() -> Iterator[None]:
    """Let the first SIGINT or SIGTERM interrupt the block, also where a script's background has SIGINT ignored."""
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
    """Put the handlers back where a library has set its own, in a process that runs a verb."""
    if _verb.is_watched and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: Any) -> None:
    if _verb.received is None:
        _verb.received = number
        threading.Thread(target=_end_late, name="interruption", daemon=True).start()
        raise KeyboardInterrupt


def is_interrupted() -> bool:
    """Whether a signal has come; what a library makes of it may be any exception, or none."""
    return _verb.received is not None


def stop_if_interrupted() -> None:
    """Raise KeyboardInterrupt where one was raised before, and swallowed."""
    if is_interrupted():
        raise KeyboardInterrupt


@contextmanager
def on_interruption(mark: Callable[[], str]) -> Iterator[None]:
    """Have `mark` called once where the block is interrupted; it returns what the user should know, "" for nothing.

    The marks of outer blocks are called before: they are what the next start reads first, and time may run out.
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
    with _verb.marking:  # the other thread may be at it
        while _verb.marks:
            mark = _verb.marks.pop(0)
            with suppress(Exception):  # the verb ends, whatever is wrong with what it leaves
                told = mark()
                _verb.told = _verb.told or told


def end_interrupted() -> NoReturn:
    """End this process, and a Ray that it has started: mark what is not marked yet, say it in one line."""
    if not _verb.ending.acquire(blocking=False):
        time.sleep(2 * LAST_S)  # the other thread is at it
    last = threading.Timer(LAST_S, _exit)
    last.daemon = True
    last.start()
    _mark()
    stop_ray()
    _exit()


def stop_ray() -> str:
    """Leave the cluster, or end the Ray that this process has started, with all that runs for it: as a mark, the first
    thing to do, since the rest needs the cores."""
    if ray := sys.modules.get("ray"):
        with suppress(Exception):
            ray.shutdown()
    return ""


def _end_late() -> None:
    time.sleep(WAY_OUT_S)
    end_interrupted()


def _exit() -> NoReturn:
    number = _verb.received or signal.SIGINT
    print(
        f"interrupted by {signal.Signals(number).name}: {_verb.told or 'the same command starts again'}",
        file=sys.stderr,
        flush=True,
    )
    # At once: what libraries do as a process exits takes long without a cluster, or ends in a C++ stack.
    os._exit(128 + number)
