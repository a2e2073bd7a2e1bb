"""Messages for people go to stderr; the last line of stdout is one JSON result."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pft_core.errors import UserError

if TYPE_CHECKING:
    from pft_core.evaluation import EvaluationRow

COPY_WIDTH = 120  # of a table in a copy, which has no width of its own


class MessageConsole(Console):
    """A console that copies its messages, for example to a log file, and may show one live line below them."""

    def __init__(self, **options: Any):
        # Messages contain paths and texts of users, in which brackets and colons are not markup.
        super().__init__(markup=False, emoji=False, **options)
        self._copies: list[Callable[[str], None]] = []
        self._live_line: Live | None = None

    @property
    def has_live_line(self) -> bool:
        """Whether a line can be drawn again and again: not on a dumb terminal, in CI, or without a terminal."""
        is_bare = self.is_dumb_terminal or os.environ.get("CI", "").lower() not in ("", "0", "false")
        return self.is_terminal and not is_bare and self.file.isatty()  # with FORCE_COLOR, rich takes a pipe for one

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        self.copy(*objects)

    def copy(self, *objects: Any) -> None:
        """Pass a message to the copies only."""
        if self._copies and (text := _as_text(objects)):
            for write in self._copies:
                write(text)

    @contextmanager
    def copied_to(self, write: Callable[[str], None]) -> Iterator[None]:
        """Also pass every message of the block to `write`, as plain text."""
        self._copies.append(write)
        try:
            yield
        finally:
            self._copies.remove(write)

    def show_line(self, draw: Callable[[], RenderableType]) -> None:
        """Show a live line until `hide_line`; messages are printed above it."""
        if self._live_line is None:
            self._live_line = Live(console=self, get_renderable=draw, transient=True)
            self._live_line.start(refresh=True)

    def hide_line(self) -> None:
        """Remove the live line, if there is one, and show the cursor again."""
        if self._live_line is not None:
            self._live_line.stop()
            self._live_line = None


def _as_text(objects: tuple[Any, ...]) -> str:
    if all(isinstance(each, str) for each in objects):
        return " ".join(objects)
    file = StringIO()
    Console(file=file, width=COPY_WIDTH, markup=False, emoji=False, color_system=None).print(*objects, end="")
    return file.getvalue().strip("\n")


console = MessageConsole(stderr=True)


def reserve_stdout() -> tuple[int, Callable[[dict[str, Any]], None]]:
    """Point fd 1 at stderr for the rest of the process; return the old fd and a function that writes the result.

    The file descriptor is redirected because libraries, C++ code and child processes bypass `sys.stdout`. It is never
    restored, since Ray prints again while the process exits, and the result must stay the last line.
    Raises UserError if stdout is closed, before any work starts. The returned function raises UserError if it cannot
    write the result; the message then contains the result.
    """
    if sys.stdout is None:
        raise UserError("stdout is closed, but the result is written there: remove >&-, or redirect stdout to a file")
    if sys.stderr is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.stdout.flush()
    result_fd = os.dup(1)  # not inherited: a child that outlives us must not keep the reader of a pipe waiting
    os.dup2(2, 1)

    def write_result(result: dict[str, Any]) -> None:
        text = json.dumps(result, ensure_ascii=False)
        try:
            with os.fdopen(result_fd, "w", encoding="utf-8") as stdout:
                print(text, file=stdout)
        except OSError as error:
            raise UserError(f"stdout: {error.strerror}: the result could not be written; it is {text}") from None

    return result_fd, write_result


def printable(text: str) -> str:
    """Replace control characters, which could steer a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)


def one_table(rows: Iterable["EvaluationRow"]) -> Table:
    """Tabulate the *One* rows of a report: a row per axis and pole, a column per policy, with 95% intervals.

    Bold marks a pole that the policy was trained on.
    """
    cells = {
        (axis, pole, row["policy"]): row
        for row in rows
        if row["metric"] == "one" and (axis := row["axis"]) is not None and (pole := row["pole"]) is not None
    }
    policies = list(dict.fromkeys(policy for *_, policy in cells))
    table = Table(title="One: the chosen option shows the target pole", caption="bold: trained on this pole")
    for heading in ("axis", "pole", "n", *policies, "position"):
        justify: Literal["left", "right"] = "left" if heading in ("axis", "pole") else "right"
        table.add_column(heading, justify=justify, overflow="fold")  # a narrow terminal cuts off no digit
    for axis, pole in dict.fromkeys((axis, pole) for axis, pole, _ in cells):
        present = {policy: cells[axis, pole, policy] for policy in policies if (axis, pole, policy) in cells}
        any_row = next(iter(present.values()))
        table.add_row(
            Text(axis),
            Text(pole),
            str(any_row["n"]),
            *(_cell(present[policy]) if policy in present else "" for policy in policies),
            _number(any_row["position_baseline"]),
        )
    return table


def _cell(row: "EvaluationRow") -> Text:
    text = f"{_number(row['value'])} ({_number(row['low'])}-{_number(row['high'])})"
    return Text(text, style="bold" if row["trained_pole"] else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
