"""Plain tables on a terminal, and numbers as people read them."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.console import console

FILE_WIDTH = 120  # of a table that goes to a file or a pipe, which has no width of its own


def print_table(table: Table) -> None:
    """Print a table in the width of the terminal."""
    to = console if console.is_terminal else Console(stderr=True, markup=False, emoji=False, width=FILE_WIDTH)
    to.print(table, highlight=False)


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


def size(num_bytes: int) -> str:
    """Return a size with three digits, in decimal units as disks have them."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def facts(title: str, rows: Mapping[str, Any]) -> Table:
    """Tabulate values by key."""
    table = plain_table(title, "")
    for key, value in rows.items():
        table.add_row(key, Text(number(value), overflow="fold"))
    return table
