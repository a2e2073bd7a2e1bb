"""Registries of things that users choose by name: objectives, sources, metrics. Plugins add to the shipped entries.

An entry is light: it describes the thing, its needs and the place of its code. Configs, `--help` and tables read
entries without loading the code.
"""

import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from pft_core.errors import UserError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind by name, in the order of registration."""

    def __init__(self, kind: str, entry_type: type[T]):
        """Create an empty registry. kind: the word for an entry in messages, such as "objective"."""
        self.kind = kind
        self._entry_type = entry_type
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Add an entry and return it. Raises UserError if the name is taken or the entry has the wrong type."""
        if not isinstance(entry, self._entry_type):
            raise UserError(f"{self.kind} {name!r}: give a {self._entry_type.__name__}, not {entry!r}")
        if name in self._entries:
            raise UserError(f"{self.kind} {name!r} is registered already: choose another name")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        """Return the entry of that name. Raises UserError with the closest known name if there is none."""
        if name not in self._entries:
            raise UserError(f"{self.kind} {name!r} does not exist.{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def load_code(place: str | Any) -> Any:
    """Import and return the object at "package.module:name"; return anything but a string as it is.

    Raises UserError if there is no such module, or no such name in it.
    """
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the module exists, but one of its imports does not
        raise UserError(f"{place!r}: there is no module {error.name!r}: correct the place of the code") from None
    if not hasattr(loaded, name):
        raise UserError(f"{place!r}: {module} has no {name!r}: correct the place of the code")
    return getattr(loaded, name)


def refuse_no_code(what: str, code: object) -> None:
    """Raise UserError if `code` is neither a function nor the place of one. what: the argument's name."""
    if not callable(code) and not (isinstance(code, str) and re.fullmatch(r"\w+(\.\w+)*:\w+", code)):
        raise UserError(f"{what}={code!r}: give a function, or its place as 'package.module:name'")


def refuse_unknown(what: str, value: object, known: Iterable[object]) -> None:
    """Raise UserError if a value is not one of the known ones. what: the argument's name."""
    if value not in (choices := list(known)):
        raise UserError(f"{what}={value!r}: give {' or '.join(repr(choice) for choice in choices)}")


def call(code: Callable[..., Any], *arguments: Any, what: str) -> Any:
    """Call code that may be a user's own.

    what: the owner of the code, for the message. Raises UserError with the line and the error if the code fails.
    """
    try:
        return code(*arguments)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        raise UserError(f"{what}: its code fails in {place}: {type(error).__name__}: {error}: fix it") from error
