"""JSON text: a row that is decoded, a list that is read row by row, and an object that holds the rows.

A key that stands twice in one object is told: a decoder keeps the last one without a word.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, TextIO

from pft_core.data.records import Reject
from pft_core.errors import UserError

MAX_ROW_BYTES = 1 << 20
CHUNK = 1 << 20

# No form of a row has a list of objects under one of these.
_KEYS_OF_ROWS = {"data", "dataset", "examples", "instances", "items", "pairs", "questions", "records", "rows"}
_KEYS_OF_ROWS |= {"samples", "train", "validation", "test"}
_SPACE = re.compile(r"[ \t\r\n]*")


def rows_key(value: dict[str, Any]) -> str | None:
    """Return the key under which an object seems to hold the rows of a data set; None where it seems to be a row."""
    keys = [
        key for key, held in value.items() if isinstance(held, list) and any(isinstance(item, dict) for item in held)
    ]
    likely = [key for key in keys if len(value) == 1 or key.lower() in _KEYS_OF_ROWS]
    return ", ".join(likely) or None


def oversized(where: str) -> Reject:
    return Reject(where, "", "oversized_row", f"longer than {MAX_ROW_BYTES} bytes")


def list_rows(file: TextIO, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (where, row or Reject) of a JSON list. Raises UserError at a syntax error."""
    text = _JsonText(file, name)
    if not text.next_character():
        return
    text.skip(1)
    closed = text.next_character() == "]"
    text.skip(closed)
    while not closed:
        where, row, length = text.element()
        yield where, row if length <= MAX_ROW_BYTES else oversized(where)
        closed = text.separator("]") == "]"
    text.expect_end()


def keys_with_rows(file: TextIO, name: str) -> list[str]:
    """Return the keys of the one object in a file that hold a list of objects. Raises UserError: it is not one."""
    text = _JsonText(file, name)
    text.next_character()
    text.skip(1)
    keys = []
    closed = text.next_character() == "}"
    text.skip(closed)
    while not closed:
        _, key, _ = text.element()
        text.expect(":")
        if _is_list_of_objects(text):
            keys.append(str(key))
        closed = text.separator("}") == "}"
    text.expect_end()
    return keys


def _is_list_of_objects(text: "_JsonText") -> bool:
    """Read the value that follows, a list element by element."""
    if text.next_character() != "[":
        text.element()
        return False
    text.skip(1)
    objects = False
    closed = text.next_character() == "]"
    text.skip(closed)
    while not closed:
        objects |= isinstance(text.element()[1], dict)
        closed = text.separator("]") == "]"
    return objects


class Decoder:
    """Decodes JSON, and remembers a key that stood twice in an object."""

    def __init__(self) -> None:
        self._repeated: str | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def row(self, line: bytes, where: str) -> Any:
        """Return the JSON value of a line, or a Reject."""
        self._repeated = None
        try:
            row = self._decoder.decode(line.decode("utf-8-sig"))
        except RecursionError:
            return Reject(where, "", "too_deep", "nested too deep to be read")
        except ValueError as error:  # also for wrong UTF-8, and for numbers beyond Python's limit of digits
            return Reject(where, "", "malformed_json", str(error)[:200])
        return self.checked(row, where)

    def next(self, text: str, at: int) -> tuple[Any, int]:
        """Return the value that starts there, and where it ends."""
        self._repeated = None
        return self._decoder.raw_decode(text, at)

    def checked(self, row: Any, where: str) -> Any:
        """Return what was decoded last, or a Reject where a key was lost."""
        if self._repeated is None:
            return row
        return Reject(where, self._repeated, "repeated_key", "the key stands twice in one object")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self._repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        return found


class _JsonText:
    """JSON text, held only from the element that is being read: files may be larger than memory."""

    def __init__(self, file: TextIO, name: str):
        self._file = file
        self._name = name
        self._text = ""
        self._at = 0
        self._line = 1
        self._num_rows = 0
        self._last_row_line = 0
        self._decoder = Decoder()

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
        """Read an element: where it starts, its value or a Reject, its length in bytes."""
        self.next_character()
        where = self._place()
        while True:
            fault = "the list is not closed"
            try:
                value, end = self._decoder.next(self._text, self._at)
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
        return where, self._decoder.checked(value, where), length

    def _place(self) -> str:
        """Name the element that follows: its line, and its number where a line holds several."""
        self._num_rows += 1
        shared = self._line == self._last_row_line
        self._last_row_line = self._line
        return f"{self._name}:{self._line}" + (f" (row {self._num_rows})" if shared else "")

    def separator(self, closing: str) -> str:
        """Read the comma after an element or the end of what holds it."""
        return self.expect(",", closing)

    def expect(self, *characters: str) -> str:
        """Read one of these characters, the next one but for white space."""
        character = self.next_character()
        if character not in characters:
            expected = " or ".join(map(repr, characters))
            raise self._broken(f"expected {expected} after an element, found {character or 'the end of the file'!r}")
        self.skip(1)
        return character

    def expect_end(self) -> None:
        if self.next_character():
            raise self._broken("text after the end of the list")

    def _read_on(self) -> bool:
        self._text = self._text[self._at :]
        self._at = 0
        try:
            more = self._file.read(max(CHUNK, len(self._text)))
        except UnicodeDecodeError as error:
            raise self._broken(str(error)) from None
        self._text += more
        return bool(more)

    def _broken(self, fault: str) -> UserError:
        return UserError(
            f"{self._name}:{self._line}: not valid JSON: {fault}; "
            "correct it, or write JSON lines, where a bad row costs only itself"
        )
