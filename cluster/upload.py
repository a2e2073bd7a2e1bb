"""The upload of a job: the code, and the user's files that the command names.

A checkout is uploaded as it is. For an installed package, its packages and the named files are copied to a temporary
folder, under their paths relative to the current folder.
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
# Only code is uploaded: data and results live on storage that all nodes share.
LEFT_OUT = ("runs", "data", "build", "dist")
EXCLUDES = [*(f"/{name}" for name in LEFT_OUT), ".*_cache", "__pycache__", "*.egg-info", "mlruns", "*.db"]


def is_checkout() -> bool:
    return (CODE / "pyproject.toml").is_file()


def root() -> Path:
    """Return the folder whose files can be uploaded: the checkout, or the current folder."""
    return CODE if is_checkout() else Path.cwd()


def in_upload(name: str) -> str:
    """Return the path of a recipe or plugin as the job sees it; return any other word unchanged. Raises UserError."""
    path = Path(name).expanduser()
    if not _is_path(path) or not path.is_file():
        return name
    if not path.resolve().is_relative_to(root()):
        raise UserError(f"{name}: is not inside {root()}, so it cannot be uploaded: copy it there")
    relative = path.resolve().relative_to(root())
    if relative.parts[0] in LEFT_OUT:
        raise UserError(f"{name}: the folder {relative.parts[0]} is not uploaded: copy the file elsewhere")
    if is_checkout() and _is_ignored(root() / relative):
        raise UserError(
            f"{name}: .gitignore or .rayignore excludes it from the upload: remove it from there, or copy the file"
        )
    for plugin in plugins_of(path):
        plugin_in_upload(plugin)
    return str(relative)


def _is_ignored(path: Path) -> bool:
    """Return whether Ray leaves the file out of the upload, by the ignore files in the folders above it."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    folders = [folder for folder in reversed(path.parents) if folder.is_relative_to(root())]
    for depth, folder in enumerate(folders):
        excludes = get_excludes_from_ignore_files(folder, include_gitignore=True, logger=LOG)
        if any(is_left_out(part) for is_left_out in excludes for part in (*folders[depth:], path)):
            return True
    return False


def _is_path(name: Path) -> bool:
    """Return whether a word is a path, with a suffix or a folder, instead of a shipped name."""
    return name.suffix in (".yaml", ".yml", ".py") or len(name.parts) > 1


def plugin_in_upload(name: str) -> str:
    """Return a plugin, a file or a dotted module name, as the job sees it. Raises UserError.

    A missing module is left to the job to report. A module outside `root()` is refused: the cluster may have another
    version, and the job id would not depend on its code.
    """
    if name.endswith(".py"):
        return in_upload(name)
    files = module_files(name)
    for file in files:
        in_upload(str(file))
    if not files and (place := _place_elsewhere(name)):
        raise UserError(
            f"plugin {name}: {place} is not inside {root()}, so it cannot be uploaded: copy it there, or, if it "
            "is installed on the cluster, give a file that imports it"
        )
    return name


def module_files(name: str) -> list[Path]:
    """Return the Python files of a module's top-level package if it lies in `root()`, where the job starts."""
    top = name.partition(".")[0]
    if not top.isidentifier() or top in PACKAGES:
        return []
    single = root() / f"{top}.py"
    return sorted((root() / top).rglob("*.py")) or ([single] if single.is_file() else [])


def _place_elsewhere(name: str) -> str | None:
    """Return the place of a module's top-level package, without importing it; None if it is in `root()` or missing."""
    top = name.partition(".")[0]
    if top in PACKAGES or not top.isidentifier():
        return None
    spec = importlib.machinery.PathFinder.find_spec(top, [str(Path.cwd()), *sys.path])
    places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
    return next((place for place in places if place and Path(place) != root() / top), None)


UNREADABLE = (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError)  # raised for text that is not YAML


def top_of(recipe: Path) -> dict[str, Any]:
    """Return the top-level keys of a recipe or suite; {} if it cannot be read, which the job will report."""
    try:
        raw = yaml.safe_load(recipe.expanduser().read_text(encoding="utf-8"))
    except UNREADABLE:
        return {}
    return raw if isinstance(raw, dict) else {}


def plugins_of(recipe: Path) -> list[str]:
    """Return the plugins of a recipe or suite: files relative to its folder, modules unchanged."""
    listed = top_of(recipe).get("plugins") if recipe.suffix != ".py" else None
    names = [str(name) for name in listed] if isinstance(listed, list) else []
    return [str(recipe.parent / name) if name.endswith(".py") else name for name in names]


def plugins_in_override(word: str) -> list[str]:
    """Return the plugins in an override `plugins=[a.py, package.module]`. Raises UserError."""
    try:
        names = yaml.safe_load(word.partition("=")[2])
    except UNREADABLE:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{word!r}: expected a list of files and modules, such as 'plugins=[own.py]'")
    return names


def files_in(command: Sequence[str]) -> list[Path]:
    """Return the files below `root()` that a job's command names, with the plugins of its recipes."""
    relative = [
        Path(word) for word in command if not os.path.isabs(word)
    ]  # uploaded files are named relative to the root
    recipes = [root() / name for name in relative if _is_path(name) and os.path.isfile(root() / name)]
    plugins = [*_plugins_in(command), *(plugin for recipe in recipes for plugin in plugins_of(recipe))]
    return [*recipes, *(file for plugin in plugins for file in _files_of(plugin))]


def _plugins_in(command: Sequence[str]) -> list[str]:
    """Return the plugins of a job's command, from its --plugin options and its overrides."""
    options = [value for word, value in itertools.pairwise(command) if word == "--plugin"]
    overrides = [word for word in command if word.startswith("plugins=")]
    return [*options, *(plugin for word in overrides for plugin in plugins_in_override(word))]


def _files_of(plugin: str) -> list[Path]:
    if not plugin.endswith(".py"):
        return module_files(plugin)
    file = (root() / plugin).resolve()
    return [file] if os.path.isfile(file) else []


def digest(command: Sequence[str]) -> str:
    """Return the sha256 of the command, the code, the uploaded files, and the manifests of the data."""
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
    """Provide the Ray runtime_env of a job; its temporary folder is removed after the upload."""
    if is_checkout():
        yield {"working_dir": str(CODE), "excludes": EXCLUDES}
        return
    with tempfile.TemporaryDirectory(prefix="pft-upload-") as folder:
        _copy_to(command, Path(folder))
        yield {"working_dir": folder, "excludes": EXCLUDES}


def _copy_to(command: Sequence[str], folder: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(CODE / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in files_in(command):
        target = folder / path.resolve().relative_to(root())
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
