"""The tables of runs: one of many runs, and values of several side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from pipelines.reporting import seconds as duration
from pipelines.runs.figures import mean_loss
from pipelines.runs.run import Run
from pipelines.tables import number, plain_table, size

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


def rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def best(value: Any) -> float | None:
    """Return a share, or the largest of several policies' shares."""
    shares: list[float] = list(value.values()) if isinstance(value, dict) else [value]
    return None if value is None else max(shares)
