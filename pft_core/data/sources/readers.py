"""Readers of data files: every row comes with its place, and a faulty row costs only itself.

They read JSON lists, JSON lines, Parquet, CSV and TSV; all but Parquet also compressed with gzip or Zstandard. Files
are cut into parts by size alone, so that the result does not depend on the number of tasks that read them.
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
READABLE = f"{', '.join(SUFFIXES)}, all but .parquet also with {' or '.join(COMPRESSIONS)}"

# Names of files that a published data set has beside its data, and that hold no rows.
_ABOUT_DATA = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog)"
    r"([-_.]([a-z]{2}([-_][a-z]{2,4})?|mit|bsd|gpl|apache))?(\.(md|txt|rst|html|pdf|cff|bib))?",
    re.IGNORECASE,
)
_ARROW_ERRORS = (pa.ArrowException, ValueError, OSError)

Located = tuple[str, Any]


@dataclass(frozen=True)
class FilePart:
    """A part of a file.

    name: the file's name as the user wrote it. start, stop: a range of bytes (JSON lines) or row groups (Parquet);
    0 and 0 for a JSON list or a table, which are always read whole. first_row: the part's first line or row, from 1.
    """

    path: str
    name: str
    format: Literal["json", "jsonl", "parquet", "table"]
    start: int = 0
    stop: int = 0
    first_row: int = 1


def suffix_of(path: Path) -> str | None:
    """Return the suffix that selects a file's reader, without that of its compression; None if no reader does."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = len(suffixes) == 2 and suffixes[-1] in COMPRESSIONS
    suffix = suffixes[0 if packed else -1] if suffixes else ""
    return suffix if suffix in SUFFIXES and not (packed and suffix == ".parquet") else None


def files_in(name: str) -> list[Path]:
    """Return the data file at a local path, or the data files of the folder there, sorted. Raises UserError."""
    path = Path(name)
    if path.is_dir():
        return _files_of_folder(path, name)
    if not path.exists():
        raise UserError(f"{name}: no such file or folder")
    if not path.is_file():
        raise UserError(f"{name}: neither a file nor a folder: give data that is in a file")
    if suffix_of(path) is None:
        raise UserError(f"{name}: the name of a data file ends in one of {READABLE}")
    return [path]


def _files_of_folder(folder: Path, name: str) -> list[Path]:
    """Return the data files. Raises UserError for any other entry that may hold rows, as it would not be read."""
    entries = sorted(folder.iterdir())
    files = [entry for entry in entries if entry.is_file() and entry.name[0] != "." and suffix_of(entry)]
    rest = [entry for entry in entries if entry not in files and not _holds_no_rows(entry)]
    if rest:
        names = ", ".join(f"{entry.name}/" if entry.is_dir() else entry.name for entry in rest[:5])
        more = f" and {len(rest) - 5} more" if len(rest) > 5 else ""
        raise UserError(
            f"{name}: holds {names}{more}, which {'is' if len(rest) == 1 else 'are'} not read with this folder: give "
            f"the files or folders themselves, or remove what is not data (readable: {READABLE})"
        )
    if not files:
        raise UserError(f"{name}: no data file in this folder (readable: {READABLE})")
    return files


def _holds_no_rows(entry: Path) -> bool:
    if entry.name.startswith("."):
        return True
    if entry.is_dir() and not entry.is_symlink():  # a link may lead back to a folder above it
        return all(_holds_no_rows(inner) for inner in entry.iterdir())
    return entry.is_file() and (bool(_ABOUT_DATA.fullmatch(entry.name)) or not entry.stat().st_size)


def is_hub_name(name: str) -> bool:
    """Return whether a name is that of a hub data set (`owner/name` or `owner/name:config`), not a path.

    It is a path if something of that name exists here, if it has the suffix of a data file, or if `owner` is a file.
    """
    is_well_formed = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?", name)
    may_be_hub_name = is_well_formed and suffix_of(Path(name)) is None
    first = name.partition("/")[0]
    is_inside_a_file = os.path.lexists(first) and not os.path.isdir(first)  # also true for a dead link
    return bool(may_be_hub_name) and not is_inside_a_file and not os.path.lexists(name)


def load_hub(name: str, *, split: str, folder: Path) -> Path:
    """Download one split of a hub data set and write it as Parquet to `folder/name/`; return the file.

    name: `owner/name`, or `owner/name:config` for one of its configurations. Raises UserError if it cannot be loaded.
    """
    from datasets import load_dataset

    data_set, _, config = name.partition(":")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each of its retries logs two lines
    try:
        data = load_dataset(data_set, config or None, split=split)
    except Exception as error:  # datasets raises its own errors and those of every library below it
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

    Raises UserError for a damaged file, Parquet with extension types, and JSON that is one object with the rows in it.
    """
    whole, suffix = str(path.absolute()), suffix_of(path)  # a link keeps its name, which may be the axis
    with damage_named(name):
        if suffix == ".parquet":
            yield from _parquet_parts(whole, name)
        elif suffix in (".csv", ".tsv"):
            yield FilePart(whole, name, "table")
        elif suffix == ".json" and _first_character(whole) in (b"[", b""):
            # Files named .json often hold JSON lines; an empty file counts as an empty list.
            yield FilePart(whole, name, "json")
        else:
            _refuse_one_object(whole, name)
            yield from _line_parts(whole, name)


def _first_character(path: str) -> bytes:
    with open_bytes(path) as file:
        return file.read(CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()[:1]


def _refuse_one_object(path: str, name: str) -> None:
    """Raise UserError if a file is one object that holds the rows: read as JSON lines, it would be one row or none."""
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
    """Return the key of the rows in a file that is one object, "" if it has none; None for any other file."""
    try:
        with open_text(path) as file:
            return ", ".join(keys_with_rows(file, name))
    except UserError:
        return None


def _line_parts(path: str, name: str) -> Iterator[FilePart]:
    if compression_of(path) is not None:  # a compressed file can only be read from its start
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
    """Open a Parquet file. Raises UserError if it is damaged, or has repeated columns or extension types."""
    try:
        file = pq.ParquetFile(path)
        fields = list(file.schema_arrow)
    except _ARROW_ERRORS as error:
        raise UserError(f"{name}: not a readable Parquet file: {error}") from None
    repeated = [column for column, count in Counter(field.name for field in fields).items() if count > 1]
    if repeated:
        raise UserError(f"{name}: column {repeated[0]!r} occurs twice: give each column its own name")
    for field in fields:
        _refuse_extension_types(field, name)
    return file


def _refuse_extension_types(field: pa.Field, name: str) -> None:
    # The file chooses the code that reads an extension type, and its input; some of that code unpickles it.
    if isinstance(field.type, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
        raise UserError(f"{name}: column {field.name!r} has the extension type {field.type}: store it as a plain type")
    for i in range(field.type.num_fields):
        _refuse_extension_types(field.type.field(i), name)


def read_rows(part: FilePart) -> Iterator[Located]:
    """Yield (where, raw row), with a Reject in place of a row that cannot be read.

    where: `file:line`, for a JSON list the line on which the row starts, with ` (row N)` if it is not the first on that
    line; `file:row N` for Parquet. Both count from 1.
    Raises UserError if the rest of a file cannot be read, as in a damaged file or a JSON list with a syntax error.
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
        # Batches are small, as a row may hold a megabyte, or far more before it is refused.
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
