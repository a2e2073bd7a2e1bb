"""What travels to the cluster with a job: the code, and the files of the user that the command names.

From a checkout the checkout itself travels. An installed package has none: its packages and the named files are put
into a folder of their own, under the names that they have from where the user stands.
"""

import hashlib
import importlib.machinery
import itertools
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from pft_core.errors import UserError

LOG = logging.getLogger(__name__)
CODE = Path(__file__).resolve().parents[1]  # holds the packages: a checkout, or site-packages
PACKAGES = ("pft_core", "pipelines", "cluster")
# Only code travels: data and results live on storage that every node sees.
LEFT_OUT = ("runs", "data", "build", "dist")
EXCLUDES = [*(f"/{name}" for name in LEFT_OUT), ".*_cache", "__pycache__", "*.egg-info", "mlruns", "*.db"]


def is_checkout() -> bool:
    return (CODE / "pyproject.toml").is_file()


def root() -> Path:
    """The folder whose files can travel: the checkout, or where the user stands."""
    return CODE if is_checkout() else Path.cwd()


def in_upload(name: str) -> str:
    """Return a recipe's or a plugin's file as the job sees it; any other word as it is. Raises UserError."""
    path = Path(name).expanduser()
    if not _is_path(path) or not path.is_file():
        return name
    if not path.resolve().is_relative_to(root()):
        raise UserError(f"{name}: is not inside {root()}, so the cluster would not see it: copy it there")
    relative = path.resolve().relative_to(root())
    if relative.parts[0] in LEFT_OUT:
        raise UserError(f"{name}: {relative.parts[0]} does not travel to the cluster: copy the file elsewhere")
    if is_checkout() and _is_ignored(root() / relative):
        raise UserError(f"{name}: .gitignore or .rayignore keeps it from the cluster: take it out there, or copy it")
    for plugin in plugins_of(path):
        plugin_in_upload(plugin)
    return str(relative)


def _is_ignored(path: Path) -> bool:
    """Whether Ray leaves the file out when it packs `root()`, by the ignore files on the way to it."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    way = [folder for folder in reversed(path.parents) if folder.is_relative_to(root())]
    for depth, folder in enumerate(way):
        excludes = get_excludes_from_ignore_files(folder, include_gitignore=True, logger=LOG)
        if any(is_left_out(part) for is_left_out in excludes for part in (*way[depth:], path)):
            return True
    return False


def _is_path(name: Path) -> bool:
    """Whether a word is a path and no shipped name: it has a file's ending, or a folder."""
    return name.suffix in (".yaml", ".yml", ".py") or len(name.parts) > 1


def plugin_in_upload(name: str) -> str:
    """Return a plugin, a file or a module's dotted name, as the job sees it. Raises UserError.

    What is not here at all is left to the job to name. A module that is found elsewhere is refused: nothing says that
    the cluster has the same, and the job's id would not follow its code.
    """
    if name.endswith(".py"):
        return in_upload(name)
    files = module_files(name)
    for file in files:
        in_upload(str(file))
    if not files and (place := _found_elsewhere(name)):
        raise UserError(
            f"plugin {name}: {place} is not inside {root()}, so it does not travel to the cluster: copy it there, or, "
            "where the cluster has it installed, give a file that imports it"
        )
    return name


def module_files(name: str) -> list[Path]:
    """The Python files of a module's outermost package, where it lies so that the job, which starts there, finds it."""
    top = name.partition(".")[0]
    if not top.isidentifier() or top in PACKAGES:
        return []
    single = root() / f"{top}.py"
    return sorted((root() / top).rglob("*.py")) or ([single] if single.is_file() else [])


def _found_elsewhere(name: str) -> str | None:
    """Where a module's outermost package lies, if a job started here would find it, without importing it."""
    top = name.partition(".")[0]
    if top in PACKAGES or not top.isidentifier():
        return None
    spec = importlib.machinery.PathFinder.find_spec(top, [str(Path.cwd()), *sys.path])
    places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
    return next((place for place in places if place and Path(place) != root() / top), None)


UNREADABLE = (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError)  # of a text that is no YAML


def top_of(recipe: Path) -> dict[str, Any]:
    """The keys of a recipe's or a suite's file; none where it cannot be read, since the job says what is wrong."""
    try:
        raw = yaml.safe_load(recipe.expanduser().read_text(encoding="utf-8"))
    except UNREADABLE:
        return {}
    return raw if isinstance(raw, dict) else {}


def plugins_of(recipe: Path) -> list[str]:
    """The plugins that a recipe or a suite names: files from where it lies, modules as they are."""
    named = top_of(recipe).get("plugins") if recipe.suffix != ".py" else None
    names = [str(name) for name in named] if isinstance(named, list) else []
    return [str(recipe.parent / name) if name.endswith(".py") else name for name in names]


def plugins_in_override(word: str) -> list[str]:
    """The plugins of `plugins=[a.py, package.module]`. Raises UserError."""
    try:
        names = yaml.safe_load(word.partition("=")[2])
    except UNREADABLE:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{word!r}: expected a list of files and modules, such as 'plugins=[own.py]'")
    return names


def files_in(command: Sequence[str]) -> list[Path]:
    """The files, below `root()`, that a command for the job names, plugins of its recipes among them."""
    relative = [Path(word) for word in command if not os.path.isabs(word)]  # what travels is named from the root
    recipes = [root() / name for name in relative if _is_path(name) and os.path.isfile(root() / name)]
    plugins = [*_plugins_in(command), *(plugin for recipe in recipes for plugin in plugins_of(recipe))]
    return [*recipes, *(file for plugin in plugins for file in _files_of(plugin))]


def _plugins_in(command: Sequence[str]) -> list[str]:
    """The plugins of a command for the job: those of its option, each after a word of its own, and of its overrides."""
    options = [value for word, value in itertools.pairwise(command) if word == "--plugin"]
    overrides = [word for word in command if word.startswith("plugins=")]
    return [*options, *(plugin for word in overrides for plugin in plugins_in_override(word))]


def _files_of(plugin: str) -> list[Path]:
    if not plugin.endswith(".py"):
        return module_files(plugin)
    file = (root() / plugin).resolve()
    return [file] if os.path.isfile(file) else []


def digest(command: Sequence[str]) -> str:
    """Return the sha256 of the command, the code, the files that travel, and the manifests of the data it names."""
    sha = hashlib.sha256("\0".join(command).encode())
    values = [root() / value for word in command for value in (word, word.partition("=")[2]) if value]
    for path in [*values, *(value / "manifest.json" for value in values), *files_in(command)]:
        sha.update(path.read_bytes() if os.path.isfile(path) else b"")
    for path in sorted(p for package in PACKAGES[:2] for p in (CODE / package).rglob("*")):
        if path.suffix in (".py", ".yaml"):
            sha.update(path.read_bytes())
    return sha.hexdigest()


@contextmanager
def runtime_env(command: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Give Ray's description of what the job runs in; what is gathered for it goes once Ray has uploaded it."""
    if is_checkout():
        yield {"working_dir": str(CODE), "excludes": EXCLUDES}
        return
    with tempfile.TemporaryDirectory(prefix="pft-upload-") as folder:
        _gather(command, Path(folder))
        yield {"working_dir": folder, "excludes": EXCLUDES}


def _gather(command: Sequence[str], folder: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(CODE / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in files_in(command):
        target = folder / path.resolve().relative_to(root())
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
