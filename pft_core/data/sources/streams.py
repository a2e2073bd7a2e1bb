"""Streams of a data file's bytes and text, which are decompressed while they are read.

gzip and Zstandard are recognized by their first bytes, UTF-16 by its byte order mark. All other text is read as UTF-8;
the row readers report text in another encoding.
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
    """Return `gzip`, `zstd` or None, judged by the first bytes, else by the suffix."""
    with open(path, "rb") as file:
        head = file.read(4)
    recognized = (name for first, name in _FIRST_BYTES.items() if head.startswith(first))
    return next(recognized, COMPRESSIONS.get(Path(path).suffix.lower()) if head else None)


def name_without_suffix(path: Path) -> str:
    """Return a data file's name without the suffix of its format and of its compression."""
    return Path(path.stem).stem if path.suffix.lower() in COMPRESSIONS else path.stem


def open_bytes(path: str) -> BinaryIO:
    """Open a file for reading its decompressed bytes."""
    compression = compression_of(path)
    if compression is None:
        return open(path, "rb")
    packed = pa.CompressedInputStream(pa.OSFile(path, "rb"), compression)
    return cast(BinaryIO, io.BufferedReader(packed))


def open_text(path: str, *, errors: str = "strict") -> TextIO:
    """Open a file for reading its text, with any line ending read as a newline and without a byte order mark."""
    with open_bytes(path) as file:
        encoding = "utf-16" if file.read(2) in _UTF16_MARKS else "utf-8-sig"
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors=errors)


@contextmanager
def damage_named(name: str) -> Iterator[None]:
    """Raise UserError, with the file's name, if the block finds a compressed file or its text damaged."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: damaged text: {error}; save the file as UTF-8") from None
    except OSError as error:
        if error.errno is not None:  # a fault of the disk, not of the content
            raise
        raise UserError(f"{name}: damaged, or not compressed as its name says: {error}") from None
