"""The answers to a scenario: as a table with a column for each pole, and as a part of the result."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from pft_core.data import LETTERS
from pipelines.chat.lines import Asked
from pipelines.console import printable
from pipelines.serve import CompareSide
from pipelines.tables import plain_table

CHOSEN = " <"  # after the probability of the chosen option


def table_of(asked: Asked, axis: str, sides: Sequence[CompareSide]) -> Table:
    """Tabulate the answers: a row for each option with its probabilities, or the texts side by side.

    sides: two for each policy, in the order of the poles.
    """
    return _choices(asked, axis, sides) if asked.options else _texts(axis, sides)


def _choices(asked: Asked, axis: str, sides: Sequence[CompareSide]) -> Table:
    table = plain_table(printable(axis))
    for side in sides:
        table.add_column(Text(_heading(side, has_base=len(sides) > 2)), justify="right")
    for i, option in enumerate(asked.options):
        cells = [f"{p:.2f}{CHOSEN if is_chosen else '  '}" for p, is_chosen in (_cell(side, i) for side in sides)]
        table.add_row(Text(f"({LETTERS[i]}) {printable(option)}", overflow="fold"), *cells)
    return table


def _cell(side: CompareSide, option: int) -> tuple[float, bool]:
    """Return the probability of an option, and whether it is chosen."""
    chosen = side.chosen
    assert chosen is not None, "a scenario with options is answered by a choice"
    assert chosen.options is not None, "a comparison asks for one option"
    return chosen.options[option].probability, chosen.choice == option


def _texts(axis: str, sides: Sequence[CompareSide]) -> Table:
    first, second = sides[:2]
    table = plain_table(*([""] if len(sides) > 2 else []))
    table.show_lines = True
    for side in (first, second):
        table.add_column(Text(f"{axis}: {side.pole}"), ratio=1)
    for i in range(0, len(sides), 2):
        texts = [Text(printable((side.text or "").strip()), overflow="fold") for side in sides[i : i + 2]]
        table.add_row(*([_policy(sides[i])] if len(sides) > 2 else []), *texts)
    return table


def _heading(side: CompareSide, *, has_base: bool) -> str:
    return f"{_policy(side)}: {side.pole}" if has_base else side.pole


def _policy(side: CompareSide) -> str:
    return side.model.partition("@")[0]


def exchange_of(asked: Asked, axis: str, sides: Sequence[CompareSide]) -> dict[str, Any]:
    """Return a scenario and its answers, as JSON holds them."""
    return {
        "scenario": asked.scenario,
        "options": list(asked.options),
        "axis": axis,
        "answers": [
            {
                "policy": _policy(side),
                "pole": side.pole,
                "text": side.text,
                "choice": side.chosen and side.chosen.choice,
                "probabilities": [_cell(side, i)[0] for i in range(len(asked.options))] if asked.options else None,
            }
            for side in sides
        ],
    }
