"""Readers of JSON lists, JSON lines and Parquet: every row comes with its place, and a bad row costs only itself.

Files are cut into parts by size alone, so that what is read does not depend on how many tasks read it.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from pft_core.data.records import Reject
from pft_core.errors import UserError

MAX_ROW_BYTES = 1 << 20
PART_BYTES = 32 << 20
SUFFIXES = (".json", ".jsonl", ".parquet")

_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_ARROW_ERRORS = (pa.ArrowException, ValueError, OSError)

Located = tuple[str, Any]


@dataclass(frozen=True)
class Part:
    """A piece of a file. name: the file as the user named it.

    start, stop: bytes of JSON lines, row groups of Parquet, 0 and 0 for a JSON list, which is always read whole;
    first_row: the line, or the number of the row, with which it starts (from 1).
    """

    path: str
    name: str
    format: Literal["json", "jsonl", "parquet"]
    start: int = 0
    stop: int = 0
    first_row: int = 1


def files_in(given: str) -> list[Path]:
    """Return the data file that a local path names, or those in the folder that it names, sorted. Raises UserError."""
    path = Path(given)
    known = ", ".join(SUFFIXES)
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix in SUFFIXES and f.is_file() and f.name[0] != ".")
        if not files:
            raise UserError(f"{given}: no {known} file in this folder")
        return files
    if not path.exists():
        raise UserError(f"{given}: no such file or folder")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{given}: the name of a data file ends in one of {known}")
    return [path]


def is_hub_name(given: str) -> bool:
    """Tell a hub data set (`owner/name`, or `owner/name:config`) from a path: nothing of that name is here, nor does it
    look like a file."""
    looks_like_one = (
        re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?", given) and Path(given).suffix not in SUFFIXES
    )
    return bool(looks_like_one) and not Path(given).exists()


def load_hub(name: str, *, split: str, folder: Path) -> Path:
    """Download one split of a hub data set, of its configuration behind a colon where that is given, and write it as
    Parquet to `folder/name/`. Raises UserError."""
    from datasets import load_dataset

    data_set, _, config = name.partition(":")
    try:
        data = load_dataset(data_set, config or None, split=split)
    except Exception as error:  # of its own kinds, and of those of every library below
        raise UserError(
            f"{name}: no such path here, and no hub data set with split {split!r}: {_in_a_line(error)}; give "
            "OWNER/NAME:CONFIG and --split as its page on the Hub names them"
        ) from None
    path = folder / name.replace(":", "/") / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(path)
    return path


def _in_a_line(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else f"{words[:297]}..."


def file_parts(path: Path, name: str) -> Iterator[Part]:
    """Cut a file into parts. Raises UserError for Parquet that is damaged or holds extension types."""
    whole = str(path.resolve())
    if path.suffix == ".parquet":
        yield from _parquet_parts(whole, name)
    elif path.suffix == ".json" and _starts_as_list(path):
        yield Part(whole, name, "json")
    else:
        yield from _line_parts(whole, name)


def _starts_as_list(path: Path) -> bool:
    # Files called .json often hold JSON lines; an empty file counts as an empty list.
    with path.open("rb") as file:
        head = file.read(_CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()
    return head[:1] in (b"[", b"")


def _line_parts(path: str, name: str) -> Iterator[Part]:
    start, line = 0, 1
    with open(path, "rb") as file:
        while block := file.read(PART_BYTES):
            block += file.readline()
            yield Part(path, name, "jsonl", start, start + len(block), line)
            start, line = start + len(block), line + block.count(b"\n")


def _parquet_parts(path: str, name: str) -> Iterator[Part]:
    file = _open_parquet(path, name)
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    start = size = rows = 0
    first_row = 1
    for i, group in enumerate(groups):
        size, rows = size + group.total_byte_size, rows + group.num_rows
        if size >= PART_BYTES or i == len(groups) - 1:
            yield Part(path, name, "parquet", start, i + 1, first_row)
            start, size, first_row, rows = i + 1, 0, first_row + rows, 0


def _open_parquet(path: str, name: str) -> pq.ParquetFile:
    """Open a Parquet file whose columns are of plain types. Raises UserError."""
    try:
        file = pq.ParquetFile(path)
        fields = list(file.schema_arrow)
    except _ARROW_ERRORS as error:
        raise UserError(f"{name}: not a readable Parquet file: {error}") from None
    for field in fields:
        _refuse_extension_types(field, name)
    return file


def _refuse_extension_types(field: pa.Field, name: str) -> None:
    # The reader of an extension type is code that the file picks and feeds; some unpickle what they are fed.
    if isinstance(field.type, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
        raise UserError(f"{name}: column {field.name!r} has the extension type {field.type}: store it as a plain type")
    for i in range(field.type.num_fields):
        _refuse_extension_types(field.type.field(i), name)


def read_rows(part: Part) -> Iterator[Located]:
    """Yield (where, raw row), with a Reject in the row's place where it cannot be read.

    where: `file:line`, in a JSON list the line on which the row starts, with ` (row N)` where it is not the line's
    first; `file:row N` for Parquet. Both count from 1.
    Raises UserError where the rest of a file cannot be read: a JSON list with a syntax error.
    """
    return {"json": _read_list, "jsonl": _read_lines, "parquet": _read_parquet}[part.format](part)


def _read_lines(part: Part) -> Iterator[Located]:
    with open(part.path, "rb") as file:
        file.seek(part.start)
        number = part.first_row
        while file.tell() < part.stop:
            line = file.readline(MAX_ROW_BYTES + 2)
            where = f"{part.name}:{number}"
            if len(line.strip()) > MAX_ROW_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(_CHUNK)
                yield where, _oversized(where)
            elif line.strip():
                yield where, _decoded(line, where)
            number += 1


def _decoded(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except RecursionError:
        return Reject(where, "", "too_deep", "nested too deep to be read")
    except ValueError as error:  # also for wrong UTF-8, and for numbers beyond Python's limit of digits
        return Reject(where, "", "malformed_json", str(error)[:200])


def _oversized(where: str) -> Reject:
    return Reject(where, "", "oversized_row", f"longer than {MAX_ROW_BYTES} bytes")


def _read_parquet(part: Part) -> Iterator[Located]:
    number = part.first_row
    try:
        # Small batches: a row may hold as much as a megabyte, or far more before it is refused.
        for batch in _open_parquet(part.path, part.name).iter_batches(64, row_groups=range(part.start, part.stop)):
            for row in batch.to_pylist():
                where = f"{part.name}:row {number}"
                size = len(json.dumps(row, ensure_ascii=False, default=str).encode(errors="replace"))
                yield where, row if size <= MAX_ROW_BYTES else _oversized(where)
                number += 1
    except _ARROW_ERRORS as error:
        raise UserError(f"{part.name}: damaged Parquet file, after row {number - 1}: {error}") from None


def _read_list(part: Part) -> Iterator[Located]:
    with open(part.path, encoding="utf-8-sig") as file:
        text = _ListText(file, part.name)
        if not text.next_character():
            return
        text.skip(1)
        closed = text.next_character() == "]"
        text.skip(closed)
        while not closed:
            where, row, length = text.element()
            yield where, row if length <= MAX_ROW_BYTES else _oversized(where)
            closed = text.separator() == "]"
        text.expect_end()


class _ListText:
    """The text of a JSON list, held only from the element that is being read: files may be larger than memory."""

    def __init__(self, file: TextIO, name: str):
        self._file = file
        self._name = name
        self._text = ""
        self._at = 0
        self._line = 1
        self._num_rows = 0
        self._last_row_line = 0
        self._decode = json.JSONDecoder().raw_decode

    def next_character(self) -> str:
        """Skip white space; return the character that follows, nothing at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None, "the pattern matches no character too"
            self.skip(space.end() - self._at)
            if self._at < len(self._text) or not self._read_on():
                return self._text[self._at : self._at + 1]

    def skip(self, count: int) -> None:
        self._line += self._text.count("\n", self._at, self._at + count)
        self._at += count

    def element(self) -> tuple[str, Any, int]:
        """Read an element: where it starts, its value, its length in bytes."""
        self.next_character()
        where = self._place()
        while True:
            fault = "the list is not closed"
            try:
                value, end = self._decode(self._text, self._at)
                if self._text[end : end + 1] not in ("", ".", "e", "E"):  # else a number may go on
                    break
            except RecursionError:
                fault = "nested too deep to be read"
            except ValueError as error:
                fault = str(error)
            if not self._read_on():
                raise self._broken(fault)
        length = len(self._text[self._at : end].encode(errors="replace"))
        self.skip(end - self._at)
        return where, value, length

    def _place(self) -> str:
        """Name the element that follows: its line, and its number where a line holds several."""
        self._num_rows += 1
        shared = self._line == self._last_row_line
        self._last_row_line = self._line
        return f"{self._name}:{self._line}" + (f" (row {self._num_rows})" if shared else "")

    def separator(self) -> str:
        """Read the comma after an element or the end of the list."""
        character = self.next_character()
        if character not in (",", "]"):
            raise self._broken(f"expected ',' or ']' after an element, found {character or 'the end of the file'!r}")
        self.skip(1)
        return character

    def expect_end(self) -> None:
        if self.next_character():
            raise self._broken("text after the end of the list")

    def _read_on(self) -> bool:
        self._text = self._text[self._at :]
        self._at = 0
        try:
            more = self._file.read(max(_CHUNK, len(self._text)))
        except UnicodeDecodeError as error:
            raise self._broken(str(error)) from None
        self._text += more
        return bool(more)

    def _broken(self, fault: str) -> UserError:
        return UserError(
            f"{self._name}:{self._line}: not valid JSON: {fault}; "
            "correct it, or write JSON lines, where a bad row costs only itself"
        )
