"""Long stages show one live bar on a terminal, and a line now and then elsewhere."""

import asyncio
import io
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from rich.console import Console

from pipelines.console import MessageConsole
from pipelines.progress import board, place, relay, stage, stages, streamed
from pipelines.progress.board import Board
from pipelines.progress.place import Place, Rate, Report

FACTS = {"loss": 0.5, "loss_first": 0.4, "loss_second": 0.6, "tokens_per_s": 3821.4, "peak_memory_mb": 812.0}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Callable[..., io.StringIO]:
    """Show the stages of this process on another console, and return its text."""

    def use(file: io.StringIO, width: int = 120) -> io.StringIO:
        own = Board(MessageConsole(file=file, width=width))
        monkeypatch.setattr(stages, "BOARD", own)
        monkeypatch.setattr(relay, "BOARD", own)
        monkeypatch.setattr(relay, "console", own._console)
        return file

    for name in ("CI", "FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return use


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that passes only when a test says so."""
    now = SimpleNamespace(s=1000.0)
    for module in (board, place):  # not `time` itself, which threads use
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.s))
    return now


def steps_printed(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^step (\d+)  ", text, re.MULTILINE)]


def drawn(file: io.StringIO) -> str:
    """Return what a terminal was sent, without its control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())


def live_bar(own: Board) -> str:
    """Return the live line as it is now."""
    assert own._console._live_line is not None
    plain = Console(file=io.StringIO(), width=own._console.width)
    plain.print(own._console._live_line.get_renderable())
    return plain.file.getvalue()  # type: ignore[attr-defined]  # the file is the StringIO above


def test_a_terminal_shows_one_bar_with_steps_time_left_losses_speed_and_memory(show, clock) -> None:
    file = show(Terminal())
    with stage("train", 300) as advance:
        for step in (149, 150):
            clock.s += 0.5
            advance(step, FACTS)
        bar = live_bar(stages.BOARD)
    assert re.search(r"train +━.* 150/300 +50% +1:15 left +loss 0\.400 / 0\.600 +3,821 tokens/s +812 \+ [\d,]+ MB", bar)
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h") == 1  # the cursor is shown again
    assert stages.BOARD._console._live_line is None


def test_the_first_and_the_last_step_are_printed_on_a_terminal_too(show) -> None:
    file = show(Terminal())
    with stage("train", 40) as advance:
        for step in range(1, 41):
            advance(step, FACTS)
    assert [int(number) for number in re.findall(r"step (\d+)  loss 0\.5  loss_first", drawn(file))] == [1, 40]


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"CI": "true"}])
def test_a_dumb_terminal_and_ci_get_lines_without_control_characters(show, monkeypatch, environment) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    file = show(Terminal())
    with stage("train", 2) as advance:
        advance(1, FACTS)
        advance(2, FACTS)
    assert steps_printed(file.getvalue()) == [1, 2]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", file.getvalue())


def test_a_pipe_gets_at_most_one_line_in_ten_seconds_and_the_first_and_last_step(show, clock) -> None:
    file = show(io.StringIO())
    with stage("train", 61) as advance:
        for step in range(1, 62):
            advance(step, FACTS)
            clock.s += 0.5
    assert steps_printed(file.getvalue()) == [1, 21, 41, 61]
    assert "step 41  loss 0.5  loss_first 0.4  loss_second 0.6  tokens_per_s 3821  " in file.getvalue()
    assert "  train 41/61  67%  0:10 left" in file.getvalue()


def test_a_short_stage_of_one_step_prints_nothing(show, clock) -> None:
    file = show(io.StringIO())
    with stage("encode", 1) as advance:
        clock.s += 5
        advance(1)
    assert file.getvalue() == ""


def test_an_inner_stage_has_the_places_of_the_outer_ones_in_front(show, clock) -> None:
    file = show(io.StringIO())
    with stage("compare", 12) as advance:
        advance(1)
        advance(3)
        with stage("train", 50) as inner:
            clock.s += 60
            inner(1, FACTS)
            inner(2, FACTS)
            inner(50, FACTS)  # neither the first nor the last step of a cell is printed
    assert steps_printed(file.getvalue()) == [1, 1]
    assert "compare 3/12 · train 1/50  2%" in file.getvalue()


def test_the_trainings_of_a_quickstart_print_their_first_and_last_steps(show) -> None:
    file = show(io.StringIO())
    with stage("quickstart", 3, has_inner_edges=True):
        for _ in range(2):
            with stage("train", 9) as advance:
                for step in range(1, 10):
                    advance(step)
    assert steps_printed(file.getvalue()) == [1, 9, 1, 9]
    assert "quickstart 0/3 · train 9/9" in file.getvalue()


def test_a_message_is_printed_whole_above_the_bar_and_copied(show) -> None:
    file, copies = show(Terminal()), []
    own = stages.BOARD._console
    with own.copied_to(copies.append), stage("train", 5) as advance:
        advance(1, FACTS)
        own.print("activation checkpointing off: [needs] 3.1 GB", style="yellow")
        advance(2, FACTS)
    assert "activation checkpointing off: [needs] 3.1 GB\n" in drawn(file)
    assert [text.split("  ")[0] for text in copies] == ["step 1", "activation checkpointing off: [needs] 3.1 GB"]


def test_a_stage_that_fails_takes_its_bar_away(show) -> None:
    show(Terminal())
    with pytest.raises(KeyboardInterrupt), stage("train", 5):
        raise KeyboardInterrupt
    assert stages.BOARD._console._live_line is None
    assert stages.BOARD._path == ()


def test_a_narrow_terminal_gets_one_line(show) -> None:
    show(Terminal(), width=50)
    with stage("train", 300) as advance:
        advance(1, FACTS)
        lines = live_bar(stages.BOARD).splitlines()
    assert len(lines) == 1
    assert len(lines[0]) <= 50
    assert lines[0].startswith("train  1/300  0%  loss 0.400 / 0.600")


def test_the_time_left_follows_the_last_steps_and_is_unknown_before_the_second() -> None:
    rate = Rate()
    assert rate.left_s(1, 100, now=500.0) is None  # the first step loads and compiles
    assert rate.left_s(2, 100, now=502.0) == pytest.approx(98 * 2)
    for step in range(3, 60):
        left = rate.left_s(step, 100, now=502.0 + step)
    assert left == pytest.approx(41, rel=0.1)
    for step in range(60, 80):
        left = rate.left_s(step, 100, now=561.0 + 10 * (step - 59))
    assert left == pytest.approx(210)  # the speed of the last steps, not of all


class Worker:
    """The side of a worker process: its own board, whose reports reach the driver in order."""

    def __init__(self, name: str, driver: Board):
        self.own = Board(MessageConsole(file=io.StringIO()))
        self._name, self._driver = name, driver

    def _post(self, path: Any, has_moved: bool, is_edge: bool) -> None:
        self._driver.receive(Report(self._name, path=path, has_moved=has_moved, is_edge=is_edge))

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[..., None]]:
        with self.own.posting(self._post):
            self.own.put(name, Place(name, 0, total))
            yield lambda done, **edge: self.own.put(name, Place(name, done, total), has_moved=True, **edge)
            self.own.close(name)


def test_the_driver_shows_the_stages_of_a_worker_inside_its_own(show, clock) -> None:
    file = show(io.StringIO())
    driver = stages.BOARD
    with stage("tune", 4) as advance:
        advance(1)
        clock.s += 11
        with Worker("trained 1:1", driver).stage("train", 8) as inner:
            inner(5, is_edge=True)
        assert [place.name for place in driver._path] == ["tune"]
    assert "tune 1/4 · train 5/8" in file.getvalue()


def test_two_workers_at_once_do_not_take_turns_on_the_line(show, clock) -> None:
    show(io.StringIO())
    driver = stages.BOARD
    first, second = (Worker(name, driver) for name in ("first", "second"))
    with first.stage("train", 8) as one, second.stage("encode", 8) as other:
        one(1, is_edge=True)
        other(1, is_edge=True)
        assert [place.name for place in driver._path] == ["train"]
        clock.s += 60  # the first worker is lost, and reports no longer
        other(2, is_edge=True)
        assert [place.name for place in driver._path] == ["encode"]
        driver.forget_workers()
        assert driver._path == ()


def test_fast_steps_of_a_worker_are_reported_twice_a_second(show, clock) -> None:
    driver = show(io.StringIO()) and stages.BOARD
    worker, seen = Worker("rank 0", driver), []
    worker._post = lambda path, *edges: seen.append(path[-1].done if path else None)  # type: ignore[method-assign]
    with worker.stage("train", 1000) as advance:
        for step in range(1, 121):
            advance(step)
            clock.s += 0.01
    assert len(seen) == 4  # opened, after half a second, after one, closed


def test_messages_of_a_worker_reach_the_drivers_terminal_through_the_relay(show) -> None:
    file, passed = show(io.StringIO()), relay.Relay()
    asyncio.run(passed.post(Report("", "checkpoint of step 20 saved, val_loss 0.41")))
    asyncio.run(passed.post(Report("pft seed 1", "activation checkpointing off")))
    relay.receive(asyncio.run(passed.reports()))
    said = ["checkpoint of step 20 saved, val_loss 0.41", "pft seed 1: activation checkpointing off"]
    assert file.getvalue().splitlines() == said
    assert asyncio.run(passed.reports()) == []


LATE = ray.exceptions.GetTimeoutError("the machine is busy")


def receive_until(monkeypatch: pytest.MonkeyPatch, done: threading.Event, answers: list[Any]) -> list[str]:
    """Receive `answers`, the last of which comes after the work is done; return the calls that were got."""
    calls = iter("ABC")
    got: list[str] = []

    def get(call: str, timeout: float) -> list[Report]:
        got.append(call)
        answer = answers.pop(0)
        if len(answers) < 2:
            done.set()
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(relay, "RECEIVE_EVERY_S", 0.0)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get", get)
    passed: Any = SimpleNamespace(reports=SimpleNamespace(remote=lambda: next(calls)))
    relay._receive_until(passed, done)
    return got


def test_a_late_answer_of_the_relay_is_waited_for_and_the_next_ones_too(show, monkeypatch) -> None:
    file = show(io.StringIO())
    reports = [Report("", "step 20 saved")], [Report("", "step 40 saved")]
    assert receive_until(monkeypatch, threading.Event(), [LATE, *reports]) == ["A", "A", "B"]
    assert file.getvalue().splitlines() == ["step 20 saved", "step 40 saved"]


def test_the_relay_is_not_waited_for_twice_when_the_work_is_done(monkeypatch) -> None:
    assert receive_until(monkeypatch, threading.Event(), [LATE, LATE, []]) == ["A", "A"]


def test_nothing_is_received_from_a_lost_relay(monkeypatch) -> None:
    assert receive_until(monkeypatch, threading.Event(), [ray.exceptions.RayError("lost"), [], []]) == ["A"]


def test_rows_of_a_data_set_are_counted_as_they_come(show) -> None:
    file = show(io.StringIO())
    data = SimpleNamespace(context=SimpleNamespace(), iter_rows=lambda: iter([{"n": 1}, {"n": 2}, {"n": 3}]))
    assert [row["n"] for row in streamed(data, "evaluate", 3)] == [1, 2, 3]
    assert data.context.enable_progress_bars is False
    assert steps_printed(file.getvalue()) == [1, 3]
