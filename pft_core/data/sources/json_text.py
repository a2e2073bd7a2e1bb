"""JSON text: decode a row, read a list row by row, and find the rows inside an object.

A key that occurs twice in one object is a reject, as a decoder would silently keep only the last value.
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

# No format has a row with a list of objects under one of these keys.
_KEYS_OF_ROWS = {"data", "dataset", "examples", "instances", "items", "pairs", "questions", "records", "rows"}
_KEYS_OF_ROWS |= {"samples", "train", "validation", "test"}
_SPACE = re.compile(r"[ \t\r\n]*")


def rows_key(value: dict[str, Any]) -> str | None:
    """Return the key under which an object seems to hold the rows of a data set; None if it seems to be a row."""
    keys = [
        key for key, inner in value.items() if isinstance(inner, list) and any(isinstance(item, dict) for item in inner)
    ]
    likely = [key for key in keys if len(value) == 1 or key.lower() in _KEYS_OF_ROWS]
    return ", ".join(likely) or None


def oversized(where: str) -> Reject:
    """Return the reject of a row that is longer than `MAX_ROW_BYTES`."""
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
    """Return the keys of a file's single object that hold a list of objects.

    Raises UserError if the file is not a single object.
    """
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
    """Read the next value, element by element if it is a list; return whether it is a list that holds an object."""
    if text.next_character() != "[":
        text.element()
        return False
    text.skip(1)
    holds_object = False
    closed = text.next_character() == "]"
    text.skip(closed)
    while not closed:
        holds_object |= isinstance(text.element()[1], dict)
        closed = text.separator("]") == "]"
    return holds_object


class Decoder:
    """A JSON decoder that notices a key that occurs twice in an object."""

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
        except ValueError as error:  # also for invalid UTF-8, and for numbers beyond Python's limit of digits
            return Reject(where, "", "malformed_json", str(error)[:200])
        return self.checked(row, where)

    def next(self, text: str, at: int) -> tuple[Any, int]:
        """Return the value that starts at index `at`, and the index of its end."""
        self._repeated = None
        return self._decoder.raw_decode(text, at)

    def checked(self, row: Any, where: str) -> Any:
        """Return the row that was decoded last, or a Reject if one of its keys was repeated."""
        if self._repeated is None:
            return row
        return Reject(where, self._repeated, "repeated_key", "the key occurs twice in one object")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            self._repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        return content


class _JsonText:
    """JSON text of a file that may be larger than memory: only the text from the current element on is kept."""

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
        """Skip white space; return the next character, or an empty string at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None, "the pattern also matches an empty string"
            self.skip(space.end() - self._at)
            if self._at < len(self._text) or not self._read_on():
                return self._text[self._at : self._at + 1]

    def skip(self, count: int) -> None:
        """Skip so many characters, and count their lines."""
        self._line += self._text.count("\n", self._at, self._at + count)
        self._at += count

    def element(self) -> tuple[str, Any, int]:
        """Read an element; return its place, its value or a Reject, and its length in bytes."""
        self.next_character()
        where = self._place()
        while True:
            fault = "the list is not closed"
            try:
                value, end = self._decoder.next(self._text, self._at)
                if self._text[end : end + 1] not in ("", ".", "e", "E"):  # else a number may continue
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
        """Return the place of the next element: its line, and its number if the line holds several."""
        self._num_rows += 1
        shared = self._line == self._last_row_line
        self._last_row_line = self._line
        return f"{self._name}:{self._line}" + (f" (row {self._num_rows})" if shared else "")

    def separator(self, closing: str) -> str:
        """Read the comma after an element, or the closing character, and return it."""
        return self.expect(",", closing)

    def expect(self, *characters: str) -> str:
        """Skip white space, read one of these characters and return it. Raises UserError for any other."""
        character = self.next_character()
        if character not in characters:
            expected = " or ".join(map(repr, characters))
            raise self._broken(f"expected {expected} after an element, found {character or 'the end of the file'!r}")
        self.skip(1)
        return character

    def expect_end(self) -> None:
        """Raise UserError if any text is left."""
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
            "correct it, or write JSON lines, in which a faulty row costs only itself"
        )
