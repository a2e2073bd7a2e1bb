"""CSV and TSV as spreadsheets write them: a header, then rows of cells, each located by the number of its first line.

A faulty line costs only itself: a quote that is never closed does not swallow the lines below it.
"""

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, TextIO

from pft_core.data.records import Reject
from pft_core.data.sources.json_text import CHUNK, MAX_ROW_BYTES, oversized
from pft_core.errors import UserError

_DELIMITERS = (",", ";", "\t", "|")
_UNNAMED = re.compile(r"Unnamed: \d+")  # pandas writes this for a column without a name

_Line = tuple[int, str]


def table_rows(file: TextIO, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (where, row or Reject); a row maps each column to the text of its cell, or None if the cell is empty.

    file: opened with `errors="surrogateescape"`, so that bytes of another encoding cost only their line. Empty lines
    are skipped. Raises UserError for a header that cannot be used.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _Lines(file)
    not_blank = (line for line in lines if line[1].strip())
    header = next(not_blank, (1, ""))
    if header[1].lower().startswith("sep="):  # a line in which spreadsheets note their delimiter
        header = next(not_blank, header)
    delimiter = max(_DELIMITERS, key=lambda d: len(_cells_of(header[1], d)))
    columns = [_UNNAMED.sub("", cell.strip()) for cell in _cells_of(header[1], delimiter)]
    _refuse_unusable(columns, f"{name}:{header[0]}")
    while record := _next_record(lines, delimiter, name, num_columns=len(columns)):
        where, cells = record
        if isinstance(cells, Reject):
            yield where, cells
        elif any(cell.strip() for cell in cells):
            yield where, _row(columns, cells, where)


def _cells_of(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])


def _refuse_unusable(columns: list[str], where: str) -> None:
    named = [column for column in columns if column]
    if "\0" in "".join(named):
        raise UserError(
            f"{where}: the header holds null bytes, as in UTF-16 without a byte order mark: save the file as UTF-8"
        )
    if any(not _is_utf8(column) for column in named):
        raise UserError(f"{where}: the header is not UTF-8: save the file as UTF-8")
    repeated = [column for column, count in Counter(named).items() if count > 1]
    if repeated:
        raise UserError(f"{where}: the header names column {repeated[0]!r} twice: give each column its own name")


def _next_record(
    lines: "_Lines", delimiter: str, name: str, *, num_columns: int
) -> tuple[str, list[str] | Reject] | None:
    """Read a row, which spans several lines if quotes hold line ends. Return (where, cells), or None at the end."""
    taken: list[_Line] = []
    try:
        fed = lines.up_to(MAX_ROW_BYTES, taken)
        cells = next(csv.reader(fed, delimiter=delimiter, skipinitialspace=True, strict=True), [])
        fault = "" if len(cells) == num_columns else f"{len(cells)} cells, but the header has {num_columns}"
    except csv.Error as error:
        cells, fault = [], f"cannot be read as CSV: {error}"
    if not taken:
        return None
    where = f"{name}:{taken[0][0]}"
    if len(taken[0][1]) > MAX_ROW_BYTES:
        return where, oversized(where)
    if fault:
        lines.give_back(taken[1:])  # these may be separate rows
        return where, Reject(where, "", "malformed_csv", fault)
    return where, cells


def _row(columns: list[str], cells: list[str], where: str) -> dict[str, str | None] | Reject:
    for number, (column, cell) in enumerate(zip(columns, cells, strict=True), start=1):
        if not _is_utf8(cell):
            return Reject(where, column, "wrong_encoding", "not UTF-8: save the file as UTF-8")
        is_row_number = number == 1 and cell.strip().isdecimal()  # some programs write one in an unnamed first column
        if not column and cell.strip() and not is_row_number:
            return Reject(where, f"column {number}", "unnamed_column", "the header has no name for this cell's column")
    return {column: cell or None for column, cell in zip(columns, cells, strict=True) if column}


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # "surrogateescape" kept a byte that is not UTF-8
        return False
    return True


class _Lines:
    """Numbered lines that can be given back to be read again. A line beyond the limit is cut, not kept in memory."""

    def __init__(self, file: TextIO):
        self._file = file
        self._number = 0
        self._given_back: deque[_Line] = deque()

    def __iter__(self) -> Iterator[_Line]:
        return self

    def __next__(self) -> _Line:
        if self._given_back:
            return self._given_back.popleft()
        line = self._file.readline(MAX_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        rest = line
        while rest and not rest.endswith("\n"):
            rest = self._file.readline(CHUNK)
        self._number += 1
        return self._number, line

    def up_to(self, size: int, taken: list[_Line]) -> Iterator[str]:
        """Yield lines of at most `size` characters in total; `taken` gets them, and the line that exceeded the size."""
        for number, line in self:
            if not taken and not line.strip():
                continue
            taken.append((number, line))
            size -= len(line)
            if size < 0:
                return
            yield line

    def give_back(self, lines: list[_Line]) -> None:
        """Put lines back, to be the next ones that are read."""
        self._given_back.extendleft(reversed(lines))
