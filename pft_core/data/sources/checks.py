"""Parts that all formats share: the outcome of reading a row, and checks that name the place of the first fault."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pft_core.data.preferences import SIDES, Axis, Pole, PreferenceSpace, load_space
from pft_core.data.records import LETTERS, Option, PairedExample, Presentation, Reject, Turn, paired_example
from pft_core.errors import UserError, closest

MAX_DEPTH = 8
_LONGEST_DETAIL = 200

T = TypeVar("T")


@dataclass(frozen=True)
class AcceptedRow:
    """A record, and its axis as worded by the row."""

    record: PairedExample
    axis: Axis


Outcome = AcceptedRow | Reject  # of reading a row


class RowFault(Exception):
    """The first fault of a row: its key path, reason code and detail. `row_parser` turns it into a Reject."""

    def __init__(self, key_path: str, reason: str, detail: str):
        super().__init__(key_path, reason, detail[:_LONGEST_DETAIL])

    def at(self, where: str) -> Reject:
        """Return the reject of the row at this place."""
        key_path, reason, detail = self.args
        return Reject(where, key_path, reason, detail)


def row_parser(parse: Callable[[dict[str, Any], str | None], T]) -> Callable[[Any, str, str | None], T | Reject]:
    """Turn a function `parse(row, axis)` that raises RowFault into one `(row, where, axis) -> result | Reject`."""

    @functools.wraps(parse)
    def parse_row(row: Any, where: str, axis: str | None) -> T | Reject:
        try:
            if not isinstance(row, dict):
                raise RowFault("", "wrong_type", f"expected an object of keys and values, found {_kind(row)}")
            if _deeper_than(row, MAX_DEPTH):
                raise RowFault("", "too_deep", f"nested more than {MAX_DEPTH} levels deep")
            return parse(row, axis)
        except RowFault as fault:
            return fault.at(where)

    return parse_row


def value_of(row: Mapping[str, Any], *keys: str, inside: str = "", columns: Collection[str] = ()) -> tuple[Any, str]:
    """Return the value of the first of these keys in the row, and its path. null counts as missing. Raises RowFault.

    columns: all that the format reads, if another column of the row may be a misspelled key.
    """
    for key in keys:
        if row.get(key) is not None:
            return row[key], inside + key
    raise RowFault(inside + keys[0], "missing_key", missing(row, keys, columns=columns))


def missing(row: Mapping[str, Any], keys: Sequence[str], *, columns: Collection[str] = ()) -> str:
    """Say that a row has none of these keys: they are empty, misspelled or absent. columns: as for `value_of`."""
    empty = [key for key in keys if key in row]
    if empty:
        return f"{' and '.join(empty)} {'are' if len(empty) > 1 else 'is'} empty"
    for name in map(str, row) if columns else ():
        if name not in columns and (meant := closest(name.casefold(), keys)):
            return misnamed(name, meant)
    return f"no {' or '.join(keys)} among {', '.join(map(str, row))}"


def misnamed(name: str, meant: str) -> str:
    return f"no {meant}, but a column {name!r}. Did you mean {meant!r}?"


def text_of(row: Mapping[str, Any], *keys: str, inside: str = "", columns: Collection[str] = ()) -> str:
    """Return the text under the first of these keys in the row. Raises RowFault if it is missing or not a text."""
    return text(*value_of(row, *keys, inside=inside, columns=columns))


def text(value: Any, path: str) -> str:
    """Return a text without surrounding white space. Raises RowFault if it is empty or not a valid text."""
    if not isinstance(value, str):
        raise RowFault(path, "wrong_type", f"expected text, found {_kind(value)}")
    if not value.strip():
        raise RowFault(path, "empty_text", "expected text, found none")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which cannot be stored or tokenized
        raise RowFault(path, "invalid_text", "the text holds a character that is not valid Unicode") from None
    return value.strip()


def has_content(value: Any) -> bool:
    """Return whether a value holds anything but null, false and blank texts, at any depth."""
    if isinstance(value, dict | list | tuple):
        return any(map(has_content, parts_of(value)))
    return bool(value.strip()) if isinstance(value, str | bytes) else value is not None and value is not False


def parts_of(value: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> Collection[Any]:
    """Return the values of an object, or the entries of a list or of a Parquet map."""
    return value.values() if isinstance(value, dict) else value


def texts_in(value: Any) -> list[str]:
    """Return the texts in a value, at any depth, without the roles of messages."""
    if isinstance(value, dict):
        value = [inner for key, inner in value.items() if key not in ("role", "from")]
    if isinstance(value, list | tuple):
        return [text for inner in value for text in texts_in(inner)]
    return [value] if isinstance(value, str) else []


def instance(value: Any, kind: type[T], path: str) -> T:
    """Return the value if it is of this type, a list or an object. Raises RowFault otherwise."""
    if not isinstance(value, kind):
        expected = "a list" if kind is list else "an object of keys and values"
        raise RowFault(path, "wrong_type", f"expected {expected}, found {_kind(value)}")
    return value


def axis_name(row: Mapping[str, Any], *keys: str, default: str | None, columns: Collection[str] = ()) -> str:
    """Return the name of the row's axis: its own if it has one, else the default. columns: as for `value_of`."""
    if default is not None and all(row.get(key) is None for key in keys):
        return default
    return text_of(row, *keys, columns=columns)


def named_by(file: str) -> str:
    """Return the name of an axis in words, from the name of a file: `risk-averse` becomes `Risk averse`."""
    words = " ".join(file.replace("-", " ").replace("_", " ").split())
    return words[:1].upper() + words[1:]


def known_axis(space: PreferenceSpace, name: str, path: str) -> Axis:
    """Return the axis of that name in a space. Raises RowFault if there is none."""
    try:
        return space.axis(name)
    except UserError as error:
        raise RowFault(path, "unknown_axis", str(error)) from None


def side_of(axis: Axis, pole: str, path: str) -> int:
    """Return the side of the pole of that name. Raises RowFault if the axis has no such pole."""
    try:
        return axis.side(pole)
    except UserError as error:
        raise RowFault(path, "unknown_pole", str(error)) from None


def axis_between(name: str, poles: Sequence[str], stated: Sequence[str] | None, path: str) -> Axis:
    """Return the axis between the poles that a row names. Raises RowFault if these are not two.

    The first pole is that of `stated`, the row's own order; else that of the shipped axis with this name and these
    poles; else the first in the alphabet. It never follows the order of options or rows, which depends on how a file
    was shuffled.
    """
    shipped = shipped_axes().get(name)
    if stated is None and shipped and set(poles) <= {*(pole.name for pole in shipped.poles), "first", "second"}:
        return shipped
    first_and_second = sorted(set(poles)) if stated is None else list(stated)
    if len(first_and_second) == 1:
        raise RowFault(path, "pole_without_option", f"every option shows {first_and_second[0]!r}")
    if len(first_and_second) != 2 or first_and_second[0] == first_and_second[1]:
        raise RowFault(path, "not_two_poles", f"expected two poles, found {', '.join(first_and_second)}")
    descriptions = {pole.name: pole.description for pole in shipped.poles} if shipped else {}
    return Axis(name, *(Pole(pole, descriptions.get(pole, "")) for pole in first_and_second))


@functools.cache
def shipped_axes() -> dict[str, Axis]:
    """Return the axes of all shipped spaces by name, in order."""
    return {axis.name: axis for space in ("vcd", "bqd", "toyworld", "dilemmas") for axis in load_space(space).axes}


def accept(
    axis: Axis,
    scenario: str,
    options: Sequence[Option],
    path: str,
    presentation: Presentation = "choice",
    turns: tuple[Turn, ...] = (),
) -> AcceptedRow:
    """Build the record of a row. Raises RowFault for over ten options, equal options, or a pole without an option."""
    if len(options) > len(LETTERS):
        raise RowFault(path, "too_many_options", f"{len(options)} options; at most {len(LETTERS)} are allowed")
    if len({option.text for option in options}) < len(options):
        raise RowFault(path, "duplicate_option", "two options have the same text")
    for side in SIDES:
        if all(option.side != side for option in options):
            shown = f"shows {axis.poles[side].name!r}" if side < len(axis.poles) else "shows anything else"
            raise RowFault(path, "pole_without_option", f"no option {shown}")
    return AcceptedRow(paired_example(axis.name, scenario, options, presentation, turns), axis)


def _deeper_than(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list | tuple):
        return False
    return levels == 0 or any(_deeper_than(part, levels - 1) for part in parts_of(value))


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "a boolean"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
