"""Plugins: Python files or modules of the user that register entries: objectives, metrics, training engines and more.

The driver reads a plugin file once and sends its text with the work, so that workers on other machines import the same
code.
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field, model_validator

from pft_core.errors import UserError
from pft_core.files import digest
from pft_core.settings import Settings


@dataclass(frozen=True)
class Plugin:
    """Code of the user.

    place: a file path or a dotted module name. source: the text of a file, None for a module. digest: of the code.
    """

    place: str
    source: str | None
    digest: str

    @property
    def module_name(self) -> str:
        """The name in `sys.modules`: made up for a file, which belongs to no package."""
        stem = re.sub(r"\W", "_", Path(self.place).stem)
        return f"pft_plugin_{stem}_{self.digest[:8]}" if self.source is not None else self.place


_LOADED: dict[str, Plugin] = {}  # the plugins that this process has imported, by place


class PluggedSettings(Settings):
    """Settings that may use names from plugins, which are imported before validation."""

    plugins: list[str] = Field(default_factory=list)  # Python files, or dotted module names

    @model_validator(mode="before")
    @classmethod
    def _plugins_come_first(cls, raw: Any) -> Any:
        places = raw.get("plugins") if isinstance(raw, dict) else None
        if isinstance(places, list) and all(isinstance(place, str) for place in places):
            load_plugins(read_plugins(places))
        return raw

    def __getstate__(self) -> dict[Any, Any]:
        # Pickled settings carry the plugins' code, since the worker that unpickles them may not have the files.
        return {**super().__getstate__(), "read_plugins": read_plugins(self.plugins)}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        load_plugins(state.pop("read_plugins"))
        super().__setstate__(state)


def place_of(name: str, folder: Path) -> str:
    """Return the place to store for a plugin: an absolute path for a file in this folder, or a module name.

    A module that Python cannot import but that lies in this folder becomes its file, since only files are sent to
    workers.
    """
    if name.endswith(".py"):
        return str((folder / Path(name).expanduser()).resolve())
    if not _is_dotted(name):
        return name
    beside = folder.joinpath(*name.split(".")).with_suffix(".py")
    return str(beside.resolve()) if beside.is_file() and not _is_on_the_path(name) else name


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _is_on_the_path(name: str) -> bool:
    # Only the top-level package: a deeper look would import it too early.
    first = name.partition(".")[0]
    return first in sys.modules or importlib.util.find_spec(first) is not None


def read_plugins(places: Sequence[str]) -> tuple[Plugin, ...]:
    """Read the plugins at these places, each once per process.

    Raises UserError if a file or module does not exist.
    """
    once = {Path(place).resolve() if place.endswith(".py") else place: place for place in reversed(places)}
    return tuple(_LOADED.get(place) or _read(place) for place in reversed(once.values()))


def _read(place: str) -> Plugin:
    return _read_file(place) if place.endswith(".py") else _find_module(place)


def _read_file(place: str) -> Plugin:
    source = _text_of(place, Path(place))
    return Plugin(place, source, digest(source))


def _find_module(place: str) -> Plugin:
    spec = _spec_of(place)
    if spec is None:
        raise UserError(
            f"plugin {place}: no such module on Python's path, beside the recipe or in the current folder: give the "
            "path of its .py file, or add its folder to PYTHONPATH"
        )
    if not (spec.origin or "").endswith(".py"):
        raise UserError(
            f"plugin {place}: the module has no Python source: give one written in Python, or a Python file"
        )
    return Plugin(place, None, digest(_text_of(place, Path(str(spec.origin)))))


def _spec_of(place: str) -> ModuleSpec | None:
    """Find a module; this imports its parent packages. Raises UserError if one fails to import."""
    if not _is_dotted(place):
        return None
    try:
        return importlib.util.find_spec(place)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
            return None
        raise UserError(f"plugin {place}: {_why_not_imported(error)}") from None


def _text_of(place: str, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"plugin {place}: cannot be read ({error}): give a Python file, or a module name") from None


def load_plugins(plugins: Sequence[Plugin]) -> None:
    """Import the plugins that this process has not imported yet, so that they register their entries.

    Raises UserError if one fails to import, or registers a name that is taken.
    """
    for plugin in plugins:
        if plugin.place not in _LOADED:
            _load(plugin)
            _LOADED[plugin.place] = plugin


def _load(plugin: Plugin) -> None:
    try:
        if plugin.source is None:
            importlib.import_module(plugin.place)
        else:
            _run_source(plugin, plugin.source)
    except UserError as error:
        raise UserError(f"plugin {plugin.place}: {error}") from None
    except (Exception, SystemExit) as error:  # a plugin that calls exit() would end the verb silently
        line = f", line {number}" if (number := _line_in(plugin, error)) else ""
        raise UserError(f"plugin {plugin.place}{line}: {_why_not_imported(error)}") from None


def _why_not_imported(error: BaseException) -> str:
    return f"import failed: {type(error).__name__}: {error}"


def _run_source(plugin: Plugin, source: str) -> None:
    module = ModuleType(plugin.module_name)
    module.__file__ = plugin.place
    sys.modules[plugin.module_name] = module  # before it runs, since pickle looks names up here
    try:
        exec(compile(source, plugin.place, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[plugin.module_name]
        raise


def _line_in(plugin: Plugin, error: BaseException) -> int | None:
    """Return the innermost line of the plugin in the traceback."""
    if isinstance(error, SyntaxError):
        return error.lineno
    number, trace = None, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == plugin.place:
            number = trace.tb_lineno
        trace = trace.tb_next
    return number
