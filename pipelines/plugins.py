"""A user's own code: a Python file, or a module, that registers objectives, sources, metrics or tasks.

The driver reads a plugin once; its text travels with the work, so that workers on other machines import the same.
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
    """place: a file, or the dotted name of a module; source: a file's text, None for a module; digest: of the code."""

    place: str
    source: str | None
    digest: str

    @property
    def module_name(self) -> str:
        """What the plugin is called once it is imported: a file is no part of any package."""
        stem = re.sub(r"\W", "_", Path(self.place).stem)
        return f"pft_plugin_{stem}_{self.digest[:8]}" if self.source is not None else self.place


_LOADED: dict[str, Plugin] = {}  # by place: what this process has imported


class PluggedSettings(Settings):
    """Settings whose names a user's plugins may add to: these are imported before anything is checked."""

    plugins: list[str] = Field(default_factory=list)  # Python files, or modules by their dotted names

    @model_validator(mode="before")
    @classmethod
    def _plugins_come_first(cls, raw: Any) -> Any:
        places = raw.get("plugins") if isinstance(raw, dict) else None
        if isinstance(places, list) and all(isinstance(place, str) for place in places):
            load_plugins(read_plugins(places))
        return raw

    def __getstate__(self) -> dict[Any, Any]:
        # Pickled settings bring the plugins' code: the worker that opens them may be a machine without the files.
        return {**super().__getstate__(), "read_plugins": read_plugins(self.plugins)}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        load_plugins(state.pop("read_plugins"))
        super().__setstate__(state)


def place_of(name: str, folder: Path) -> str:
    """Return a plugin's place as it is stored: a file's absolute path, from this folder, or a module's name.

    A module that Python does not find, and that lies in this folder, is its file: workers are sent the text of files.
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
    # Of its first part alone: to look further would import it, before it is known to be meant.
    first = name.partition(".")[0]
    return first in sys.modules or importlib.util.find_spec(first) is not None


def read_plugins(places: Sequence[str]) -> tuple[Plugin, ...]:
    """Read the plugins at these places, once a process and each once, however often it is named.

    Raises UserError where there is no such file or module.
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
            f"plugin {place}: no such module here, neither on Python's path nor beside the recipe nor in the current "
            "folder: give the path of its file, which ends in .py, or add the folder that it lies in to PYTHONPATH"
        )
    if not (spec.origin or "").endswith(".py"):
        raise UserError(f"plugin {place}: has no Python source: give a Python file, or a module that is one")
    return Plugin(place, None, digest(_text_of(place, Path(str(spec.origin)))))


def _spec_of(place: str) -> ModuleSpec | None:
    """Find a module, which imports the packages that it lies in. Raises UserError for one that does not import."""
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
        raise UserError(f"plugin {place}: cannot be read ({error}): give a Python file, or a module's name") from None


def load_plugins(plugins: Sequence[Plugin]) -> None:
    """Import the plugins that this process has not imported yet; they register what they bring.

    Raises UserError for one that does not import, or that registers a name that is taken.
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
    except (Exception, SystemExit) as error:  # a plugin that exits would end the verb without a word
        line = f", line {number}" if (number := _line_in(plugin, error)) else ""
        raise UserError(f"plugin {plugin.place}{line}: {_why_not_imported(error)}") from None


def _why_not_imported(error: BaseException) -> str:
    return f"does not import: {type(error).__name__}: {error}"


def _run_source(plugin: Plugin, source: str) -> None:
    module = ModuleType(plugin.module_name)
    module.__file__ = plugin.place
    sys.modules[plugin.module_name] = module  # before it runs: what is pickled by name is looked up here
    try:
        exec(compile(source, plugin.place, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[plugin.module_name]
        raise


def _line_in(plugin: Plugin, error: BaseException) -> int | None:
    """Return the line of the plugin that the error came through last."""
    if isinstance(error, SyntaxError):
        return error.lineno
    number, trace = None, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == plugin.place:
            number = trace.tb_lineno
        trace = trace.tb_next
    return number
