"""What travels to the cluster with a job: the code, and the files of the user that the command names.

From a checkout the checkout itself travels. An installed package has none: its packages and the named files are put
into a folder of their own, under the names that they have from where the user stands.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pft_core.errors import UserError

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
    path = Path(name)
    if path.suffix not in (".yaml", ".yml", ".py") or not path.is_file():
        return name
    if not path.resolve().is_relative_to(root()):
        raise UserError(f"{name}: is not inside {root()}, so the cluster would not see it: copy it there")
    relative = path.resolve().relative_to(root())
    if relative.parts[0] in LEFT_OUT:
        raise UserError(f"{name}: {relative.parts[0]} does not travel to the cluster: copy the file elsewhere")
    for plugin in plugins_of(path):
        in_upload(plugin)
    return str(relative)


def plugins_of(recipe: Path) -> list[str]:
    """The plugin files that a recipe or a suite names; those that are not there are left to the job to name."""
    if recipe.suffix == ".py":
        return []
    try:
        raw = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return []  # the job says what is wrong with it
    named = raw.get("plugins") if isinstance(raw, dict) else None
    files = [str(name) for name in named if str(name).endswith(".py")] if isinstance(named, list) else []
    return [str(recipe.parent / name) for name in files]


def files_in(command: Sequence[str]) -> list[Path]:
    """The files, below `root()`, that a command for the job names, plugins of its recipes among them."""
    named = [root() / word for word in command if (root() / word).suffix in (".yaml", ".yml", ".py")]
    recipes = [path for path in named if path.is_file()]
    return [*recipes, *(Path(p).resolve() for recipe in recipes for p in plugins_of(recipe) if Path(p).is_file())]


def digest(command: Sequence[str]) -> str:
    """Return the sha256 of the command, the code, the files that travel, and the manifests of the data it names."""
    sha = hashlib.sha256("\0".join(command).encode())
    manifests = [root() / word.rpartition("=")[2] / "manifest.json" for word in command]
    values = [root() / word.rpartition("=")[2] for word in command]
    for path in [*values, *manifests, *files_in(command)]:
        sha.update(path.read_bytes() if path.is_file() else b"")
    for path in sorted(p for package in PACKAGES[:2] for p in (CODE / package).rglob("*")):
        if path.suffix in (".py", ".yaml"):
            sha.update(path.read_bytes())
    return sha.hexdigest()


def runtime_env(command: Sequence[str]) -> dict[str, Any]:
    """Return Ray's description of what the job runs in."""
    folder = CODE if is_checkout() else _gathered(command)
    return {"working_dir": str(folder), "excludes": EXCLUDES}


def _gathered(command: Sequence[str]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pft-upload-"))
    for package in PACKAGES:
        shutil.copytree(CODE / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in files_in(command):
        target = folder / path.resolve().relative_to(root())
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder
