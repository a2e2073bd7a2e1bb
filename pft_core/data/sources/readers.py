"""Readers of data files: every row comes with its place, and a bad row costs only itself.

JSON lists, JSON lines, Parquet, CSV and TSV, the texts also as gzip or Zstandard. Files are cut into parts by size
alone, so that what is read does not depend on how many tasks read it.
"""

import codecs
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pft_core.data.records import Reject
from pft_core.data.sources.csv_tables import table_rows
from pft_core.data.sources.json_text import (
    CHUNK,
    MAX_ROW_BYTES,
    Decoder,
    keys_with_rows,
    list_rows,
    oversized,
    rows_key,
)
from pft_core.data.sources.streams import COMPRESSIONS, compression_of, damage_named, open_bytes, open_text
from pft_core.errors import UserError

PART_BYTES = 32 << 20
SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv")
READABLE = f"{', '.join(SUFFIXES)}, the texts also followed by {' or '.join(COMPRESSIONS)}"

# What stands beside the files of a published data set, and holds no rows.
_ABOUT_DATA = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog)"
    r"([-_.]([a-z]{2}([-_][a-z]{2,4})?|mit|bsd|gpl|apache))?(\.(md|txt|rst|html|pdf|cff|bib))?",
    re.IGNORECASE,
)
_ARROW_ERRORS = (pa.ArrowException, ValueError, OSError)

Located = tuple[str, Any]


@dataclass(frozen=True)
class FilePart:
    """A piece of a file. name: the file as the user named it.

    start, stop: bytes of JSON lines, row groups of Parquet, 0 and 0 for a JSON list or a table, which are always read
    whole; first_row: the line, or the number of the row, with which it starts (from 1).
    """

    path: str
    name: str
    format: Literal["json", "jsonl", "parquet", "table"]
    start: int = 0
    stop: int = 0
    first_row: int = 1


def suffix_of(path: Path) -> str | None:
    """Return which of the suffixes a file is read by, the end of a compression left out; None where by none."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = len(suffixes) == 2 and suffixes[-1] in COMPRESSIONS
    suffix = suffixes[0 if packed else -1] if suffixes else ""
    return suffix if suffix in SUFFIXES and not (packed and suffix == ".parquet") else None


def files_in(given: str) -> list[Path]:
    """Return the data file that a local path names, or those in the folder that it names, sorted. Raises UserError."""
    path = Path(given)
    if path.is_dir():
        return _files_of_folder(path, given)
    if not path.exists():
        raise UserError(f"{given}: no such file or folder")
    if not path.is_file():
        raise UserError(f"{given}: neither a file nor a folder: give data that lies in a file")
    if suffix_of(path) is None:
        raise UserError(f"{given}: the name of a data file ends in one of {READABLE}")
    return [path]


def _files_of_folder(folder: Path, given: str) -> list[Path]:
    """Return the data files; what would be passed over, though it may hold rows, is a UserError."""
    entries = sorted(folder.iterdir())
    files = [entry for entry in entries if entry.is_file() and entry.name[0] != "." and suffix_of(entry)]
    rest = [entry for entry in entries if entry not in files and not _holds_no_rows(entry)]
    if rest:
        names = ", ".join(f"{entry.name}/" if entry.is_dir() else entry.name for entry in rest[:5])
        more = f" and {len(rest) - 5} more" if len(rest) > 5 else ""
        raise UserError(
            f"{given}: holds {names}{more}, which {'is' if len(rest) == 1 else 'are'} not read with this folder: give "
            f"the files or the folders themselves, or take away what is no data (read are {READABLE})"
        )
    if not files:
        raise UserError(f"{given}: no {READABLE} file in this folder")
    return files


def _holds_no_rows(entry: Path) -> bool:
    if entry.name.startswith("."):
        return True
    if entry.is_dir() and not entry.is_symlink():  # a link may lead round in a circle
        return all(_holds_no_rows(inner) for inner in entry.iterdir())
    return entry.is_file() and (bool(_ABOUT_DATA.fullmatch(entry.name)) or not entry.stat().st_size)


def is_hub_name(given: str) -> bool:
    """Tell a hub data set (`owner/name`, or `owner/name:config`) from a path: nothing of that name is here, nor does it
    look like a file, nor as if it lay in one."""
    is_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?", given)
    looks_like_one = is_name and suffix_of(Path(given)) is None
    first = given.partition("/")[0]
    lies_in_a_file = os.path.lexists(first) and not os.path.isdir(first)  # or behind a link that leads nowhere
    return bool(looks_like_one) and not lies_in_a_file and not os.path.lexists(given)


def load_hub(name: str, *, split: str, folder: Path) -> Path:
    """Download one split of a hub data set, of its configuration behind a colon where that is given, and write it as
    Parquet to `folder/name/`. Raises UserError."""
    from datasets import load_dataset

    data_set, _, config = name.partition(":")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each of its retries would be two lines
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


def file_parts(path: Path, name: str) -> Iterator[FilePart]:
    """Cut a file into parts.

    Raises UserError for a damaged file, for Parquet that holds extension types, and for JSON that is one object.
    """
    whole, suffix = str(path.resolve()), suffix_of(path)
    with damage_named(name):
        if suffix == ".parquet":
            yield from _parquet_parts(whole, name)
        elif suffix in (".csv", ".tsv"):
            yield FilePart(whole, name, "table")
        elif suffix == ".json" and _first_character(whole) in (b"[", b""):
            # Files called .json often hold JSON lines; an empty file counts as an empty list.
            yield FilePart(whole, name, "json")
        else:
            _refuse_one_object(whole, name)
            yield from _line_parts(whole, name)


def _first_character(path: str) -> bytes:
    with open_bytes(path) as file:
        return file.read(CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()[:1]


def _refuse_one_object(path: str, name: str) -> None:
    """Raise UserError where a file is one object that holds the rows: as JSON lines it would be one row, or none."""
    if _first_character(path) != b"{":
        return
    with open_bytes(path) as file:
        lines = iter(lambda: file.readline(MAX_ROW_BYTES + 2), b"")
        line = next(line for line in lines if line.strip())
        is_alone = not file.read(CHUNK).strip()
    row = Decoder().row(line, name) if len(line) <= MAX_ROW_BYTES else oversized(name)
    key = None
    if isinstance(row, Reject) and row.reason in ("malformed_json", "oversized_row"):
        key = _key_with_rows(path, name)
    elif isinstance(row, dict) and is_alone:
        key = rows_key(row)
    if key is not None:
        raise UserError(
            f"{name}: the file is one object{key and f'; its rows seem to be under {key!r}'}: write the rows alone, as "
            "a JSON list, or one on each line"
        )


def _key_with_rows(path: str, name: str) -> str | None:
    """Return the key of the rows in a file that is one object, "" where there is none; None where it is no object."""
    try:
        with open_text(path) as file:
            return ", ".join(keys_with_rows(file, name))
    except UserError:
        return None


def _line_parts(path: str, name: str) -> Iterator[FilePart]:
    if compression_of(path) is not None:  # nobody can start in its middle
        yield FilePart(path, name, "jsonl", 0, sys.maxsize)
        return
    start, line = 0, 1
    with open(path, "rb") as file:
        while block := file.read(PART_BYTES):
            block += file.readline()
            yield FilePart(path, name, "jsonl", start, start + len(block), line)
            start, line = start + len(block), line + block.count(b"\n")


def _parquet_parts(path: str, name: str) -> Iterator[FilePart]:
    file = _open_parquet(path, name)
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    start = size = rows = 0
    first_row = 1
    for i, group in enumerate(groups):
        size, rows = size + group.total_byte_size, rows + group.num_rows
        if size >= PART_BYTES or i == len(groups) - 1:
            yield FilePart(path, name, "parquet", start, i + 1, first_row)
            start, size, first_row, rows = i + 1, 0, first_row + rows, 0


def _open_parquet(path: str, name: str) -> pq.ParquetFile:
    """Open a Parquet file whose columns are of plain types. Raises UserError."""
    try:
        file = pq.ParquetFile(path)
        fields = list(file.schema_arrow)
    except _ARROW_ERRORS as error:
        raise UserError(f"{name}: not a readable Parquet file: {error}") from None
    repeated = [column for column, count in Counter(field.name for field in fields).items() if count > 1]
    if repeated:
        raise UserError(f"{name}: column {repeated[0]!r} is there twice: give each column its own name")
    for field in fields:
        _refuse_extension_types(field, name)
    return file


def _refuse_extension_types(field: pa.Field, name: str) -> None:
    # The reader of an extension type is code that the file picks and feeds; some unpickle what they are fed.
    if isinstance(field.type, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
        raise UserError(f"{name}: column {field.name!r} has the extension type {field.type}: store it as a plain type")
    for i in range(field.type.num_fields):
        _refuse_extension_types(field.type.field(i), name)


def read_rows(part: FilePart) -> Iterator[Located]:
    """Yield (where, raw row), with a Reject in the row's place where it cannot be read.

    where: `file:line`, in a JSON list the line on which the row starts, with ` (row N)` where it is not the line's
    first; `file:row N` for Parquet. Both count from 1.
    Raises UserError where the rest of a file cannot be read: a JSON list with a syntax error, damage.
    """
    with damage_named(part.name):
        yield from _READERS[part.format](part)


def _read_list(part: FilePart) -> Iterator[Located]:
    with open_text(part.path) as file:
        yield from list_rows(file, part.name)


def _read_table(part: FilePart) -> Iterator[Located]:
    with open_text(part.path, errors="surrogateescape") as file:
        yield from table_rows(file, part.name)


def _read_lines(part: FilePart) -> Iterator[Located]:
    with open_bytes(part.path) as file:
        if part.start:
            file.seek(part.start)
        decoder, at, number = Decoder(), part.start, part.first_row
        while at < part.stop and (line := file.readline(MAX_ROW_BYTES + 2)):
            where = f"{part.name}:{number}"
            at += len(line)
            if len(line.strip()) > MAX_ROW_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(CHUNK)
                    at += len(line)
                yield where, oversized(where)
            elif line.strip():
                yield where, decoder.row(line, where)
            number += 1


def _read_parquet(part: FilePart) -> Iterator[Located]:
    number = part.first_row
    try:
        # Small batches: a row may hold as much as a megabyte, or far more before it is refused.
        for batch in _open_parquet(part.path, part.name).iter_batches(64, row_groups=range(part.start, part.stop)):
            for row in batch.to_pylist():
                where = f"{part.name}:row {number}"
                size = len(json.dumps(row, ensure_ascii=False, default=str).encode(errors="replace"))
                yield where, row if size <= MAX_ROW_BYTES else oversized(where)
                number += 1
    except _ARROW_ERRORS as error:
        raise UserError(f"{part.name}: damaged Parquet file, after row {number - 1}: {error}") from None


_READERS: dict[str, Callable[[FilePart], Iterator[Located]]] = {
    "json": _read_list,
    "jsonl": _read_lines,
    "parquet": _read_parquet,
    "table": _read_table,
}
