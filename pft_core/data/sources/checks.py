"""What every raw format shares: the outcome of reading a row, and checks that name the place of the first fault."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pft_core.data.preferences import SIDES, Axis, Pole, PreferenceSpace, load_space
from pft_core.data.records import LETTERS, Option, PairedExample, Presentation, Reject, paired_example
from pft_core.errors import UserError

MAX_DEPTH = 8
_LONGEST_DETAIL = 200

T = TypeVar("T")


@dataclass(frozen=True)
class AcceptedRow:
    """A row that became a record, and the axis as that row words it."""

    record: PairedExample
    axis: Axis


Outcome = AcceptedRow | Reject  # of reading a row


class RowFault(Exception):
    """The first fault of a row: key path, reason code, what was found. Never leaves `row_parser`."""

    def __init__(self, key_path: str, reason: str, detail: str):
        super().__init__(key_path, reason, detail[:_LONGEST_DETAIL])

    def at(self, where: str) -> Reject:
        """Return the reject for a row that was read at this place."""
        key_path, reason, detail = self.args
        return Reject(where, key_path, reason, detail)


def row_parser(parse: Callable[[dict[str, Any], str | None], T]) -> Callable[[Any, str, str | None], T | Reject]:
    """Turn `parse(row, axis)` that raises RowFault into `(row, where, axis) -> result | Reject`."""

    @functools.wraps(parse)
    def parse_row(row: Any, where: str, axis: str | None) -> T | Reject:
        try:
            if not isinstance(row, dict):
                raise RowFault("", "wrong_type", f"a row is an object of keys and values, this is {_kind(row)}")
            if _deeper_than(row, MAX_DEPTH):
                raise RowFault("", "too_deep", f"nested deeper than {MAX_DEPTH} levels")
            return parse(row, axis)
        except RowFault as fault:
            return fault.at(where)

    return parse_row


def value_of(row: Mapping[str, Any], *keys: str, inside: str = "") -> tuple[Any, str]:
    """Return the value of the first of these keys that is there, and its path; null counts as missing."""
    for key in keys:
        if row.get(key) is not None:
            return row[key], inside + key
    raise RowFault(inside + keys[0], "missing_key", f"no {' or '.join(keys)} among {', '.join(map(str, row))}")


def text_of(row: Mapping[str, Any], *keys: str, inside: str = "") -> str:
    """Return the text under the first of these keys that is there."""
    return text(*value_of(row, *keys, inside=inside))


def text(value: Any, path: str) -> str:
    """Return a text without the white space around it."""
    if not isinstance(value, str):
        raise RowFault(path, "wrong_type", f"expected text, found {_kind(value)}")
    if not value.strip():
        raise RowFault(path, "empty_text", "expected text, found none")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair; nothing could store or tokenise it
        raise RowFault(path, "invalid_text", "holds a character that is not valid Unicode") from None
    return value.strip()


def has_content(value: Any) -> bool:
    """Tell whether a value says anything: not null, false or blank, nor made of such values alone."""
    if isinstance(value, dict | list | tuple):
        return any(map(has_content, parts_of(value)))
    return bool(value.strip()) if isinstance(value, str | bytes) else value is not None and value is not False


def parts_of(value: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> Collection[Any]:
    """Return what an object, a list or an entry of Parquet's maps is made of."""
    return value.values() if isinstance(value, dict) else value


def texts_in(value: Any) -> list[str]:
    """Return the texts in a value, at any depth; of messages not who says them."""
    if isinstance(value, dict):
        value = [held for key, held in value.items() if key not in ("role", "from")]
    if isinstance(value, list | tuple):
        return [found for inner in value for found in texts_in(inner)]
    return [value] if isinstance(value, str) else []


def instance(value: Any, kind: type[T], path: str) -> T:
    """Return the value, which has to be a list or an object."""
    if not isinstance(value, kind):
        expected = "a list" if kind is list else "an object of keys and values"
        raise RowFault(path, "wrong_type", f"expected {expected}, found {_kind(value)}")
    return value


def axis_name(row: Mapping[str, Any], *keys: str, default: str | None) -> str:
    """Return the axis that the row names, else the one given for all rows."""
    if default is not None and all(row.get(key) is None for key in keys):
        return default
    return text_of(row, *keys)


def known_axis(space: PreferenceSpace, name: str, path: str) -> Axis:
    try:
        return space.axis(name)
    except UserError as error:
        raise RowFault(path, "unknown_axis", str(error)) from None


def side_of(axis: Axis, pole: str, path: str) -> int:
    try:
        return axis.side(pole)
    except UserError as error:
        raise RowFault(path, "unknown_pole", str(error)) from None


def axis_between(name: str, poles: Sequence[str], stated: Sequence[str] | None, path: str) -> Axis:
    """Return the axis between the poles that a row names.

    Which pole comes first: the row says it (`stated`), else the shipped axis of this name that has these poles, else
    the alphabet: never the order of options or rows, which would depend on how a file was shuffled.
    """
    shipped = shipped_axes().get(name)
    if stated is None and shipped and set(poles) <= {shipped.first.name, shipped.second.name, "first", "second"}:
        return shipped
    first_and_second = sorted(set(poles)) if stated is None else list(stated)
    if len(first_and_second) == 1:
        raise RowFault(path, "pole_without_option", f"every option shows {first_and_second[0]!r}")
    if len(first_and_second) != 2 or first_and_second[0] == first_and_second[1]:
        raise RowFault(path, "not_two_poles", f"an axis has two poles, found {', '.join(first_and_second)}")
    descriptions = {pole.name: pole.description for pole in shipped.poles} if shipped else {}
    return Axis(name, *(Pole(pole, descriptions.get(pole, "")) for pole in first_and_second))


@functools.cache
def shipped_axes() -> dict[str, Axis]:
    """Return the axes of all shipped data sets by name, in their order."""
    return {axis.name: axis for space in ("vcd", "bqd", "toyworld") for axis in load_space(space).axes}


def accept(
    axis: Axis, scenario: str, options: Sequence[Option], path: str, presentation: Presentation = "choice"
) -> AcceptedRow:
    """Build the record: at most ten different options, and both poles among them."""
    if len(options) > len(LETTERS):
        raise RowFault(path, "too_many_options", f"{len(options)} options, at most {len(LETTERS)} can be lettered")
    if len({option.text for option in options}) < len(options):
        raise RowFault(path, "duplicate_option", "two options have the same text")
    for side in SIDES:
        if all(option.side != side for option in options):
            raise RowFault(path, "pole_without_option", f"no option shows {axis.poles[side].name!r}")
    return AcceptedRow(paired_example(axis.name, scenario, options, presentation), axis)


def _deeper_than(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list | tuple):
        return False
    return levels == 0 or any(_deeper_than(part, levels - 1) for part in parts_of(value))


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "a boolean"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
