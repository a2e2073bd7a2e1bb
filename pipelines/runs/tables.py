"""The tables of runs on a terminal, and numbers as people read them."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from pipelines.reporting import seconds as duration
from pipelines.runs.figures import mean_loss
from pipelines.runs.run import Run

STYLES = {"finished": "green", "running": "cyan", "interrupted": "yellow", "failed": "red", "damaged": "bold red"}
LONGEST_NOTE = 60  # characters


def run_table(runs: Sequence[Run]) -> Table:
    """Tabulate runs, a row each, so that 80 columns are enough. Losses are the mean of both sides."""
    table = plain_table("run", padding=0)
    for heading in ("kind", "status", "started", "time", "steps", "loss", "both\nright", "size"):
        table.add_column(heading, justify="left" if heading in ("kind", "status") else "right", no_wrap=True)
    for run in runs:
        table.add_row(
            name_of(run),
            run.kind,
            Text(run.status, style=STYLES.get(run.status, "")),
            (run.started or "")[5:16].replace("T", " "),
            "" if run.seconds is None else duration(run.seconds),
            number(run.figures.get("steps")),
            rounded(mean_loss(run.figures)),
            rounded(best(run.figures.get("both_right"))),
            size(run.bytes),
        )
    return table


def name_of(run: Run) -> Text:
    """Return the name, with the reason below it if the run is damaged."""
    note = f"\n{run.note}"[:LONGEST_NOTE] if run.status == "damaged" else ""
    return Text.assemble(run.name, (note, STYLES["damaged"]), overflow="fold")


def side_by_side(title: str, names: Sequence[str], rows: Mapping[str, Sequence[Any]]) -> Table:
    """Tabulate values by key, a column for each run."""
    table = plain_table(title)
    for name in names:
        table.add_column(Text(name, overflow="fold"), justify="right")
    for key, values in rows.items():
        table.add_row(key, *(Text(number(value), overflow="fold") for value in values))
    return table


def facts(title: str, rows: Mapping[str, Any]) -> Table:
    """Tabulate values by key."""
    table = plain_table(title, "")
    for key, value in rows.items():
        table.add_row(key, Text(number(value), overflow="fold"))
    return table


def plain_table(*headings: str, padding: int = 1) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, padding))
    for heading in headings:
        table.add_column(heading)
    return table


def number(value: Any) -> str:
    """Return a value as text: a number with four digits, nothing for None."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {number(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(number, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def best(value: Any) -> float | None:
    """Return a share, or the largest of several policies' shares."""
    shares: list[float] = list(value.values()) if isinstance(value, dict) else [value]
    return None if value is None else max(shares)


def size(num_bytes: int) -> str:
    """Return a size with three digits, in decimal units as disks have them."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
