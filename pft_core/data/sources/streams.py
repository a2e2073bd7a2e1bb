"""Bytes and text of a data file, unpacked while they are read: what a file is compressed with shows in its first bytes.

gzip and Zstandard are read, and UTF-8 or UTF-16 with a byte order mark; text in another encoding is for the reader of
the rows to name.
"""

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import pyarrow as pa

from pft_core.errors import UserError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

_FIRST_BYTES = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def compression_of(path: str) -> str | None:
    """Return `gzip`, `zstd` or None: what the first bytes say, else the name's end."""
    with open(path, "rb") as file:
        head = file.read(4)
    found = (name for first, name in _FIRST_BYTES.items() if head.startswith(first))
    return next(found, COMPRESSIONS.get(Path(path).suffix.lower()) if head else None)


def open_bytes(path: str) -> BinaryIO:
    """Open a file for reading its unpacked bytes."""
    compression = compression_of(path)
    if compression is None:
        return open(path, "rb")
    packed = pa.CompressedInputStream(pa.OSFile(path, "rb"), compression)
    return cast(BinaryIO, io.BufferedReader(packed))


def open_text(path: str, *, errors: str = "strict") -> TextIO:
    """Open a file for reading its text, with line ends of any system as a newline; a byte order mark is left out."""
    with open_bytes(path) as file:
        encoding = "utf-16" if file.read(2) in _UTF16_MARKS else "utf-8-sig"
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors=errors)


@contextmanager
def damage_named(name: str) -> Iterator[None]:
    """Raise UserError where a compressed file breaks off, or is none, and where UTF-16 does."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: damaged text: {error}; save the file as UTF-8") from None
    except OSError as error:
        if error.errno is not None:  # of the disk, not of the content
            raise
        raise UserError(f"{name}: damaged, or not compressed as its name says: {error}") from None
