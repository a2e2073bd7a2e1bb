"""Recipes: a shipped name or a YAML file, with overrides from the command line, into a config."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pft_core.errors import UserError, did_you_mean
from pipelines.config.run_config import JOB_NAME, RunConfig
from pipelines.plugins import load_plugins, place_of, read_plugins
from pipelines.validated_yaml import apply_override, build, read_yaml

RECIPES = Path(__file__).parents[1] / "recipes"


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a shipped recipe by its bare name, or a YAML file, and apply `train.lr=1e-4`-like overrides.

    The config of a run is the recipe of that run, which is found where it lies now.
    Raises UserError with place, value and what to do.
    """
    path = recipe_path(recipe)
    raw = read_yaml(path)
    place_plugins(raw, path.parent)
    if (path.parent / JOB_NAME).is_file():
        raw["storage"] = os.path.normpath(path.parent / "..")
    given = [apply_override(raw, override, RunConfig) for override in overrides]
    _forget_settings_of_another_engine(raw, given)
    place_plugins(raw, Path.cwd())
    source = source_of(path, given)
    import_plugins(raw, source)
    config = build(RunConfig, raw, source=source)
    if "train.epochs" in given and config.train.max_steps is not None:
        raise UserError(
            f"train.epochs={config.train.epochs:g} has no effect beside train.max_steps={config.train.max_steps}: add "
            "train.max_steps=null, or leave it out"
        )
    return config


def _forget_settings_of_another_engine(raw: dict[str, Any], given: Sequence[str]) -> None:
    """Where the command line replaces a recipe's engine, what the recipe says of that one goes with it, in place."""
    if "engine.name" in given and "engine.zero_stage" not in given and raw["engine"]["name"] == "torch":
        raw["engine"].pop("zero_stage", None)


def source_of(path: Path, given: Sequence[str]) -> Callable[[str], str]:
    """Return what says with which words the fault of a key begins: the file's name, unless the command line set it."""

    def source(key: str) -> str:
        on_the_command_line = any(f"{g}.".startswith(f"{key}.") or key.startswith(f"{g}.") for g in given)
        return "" if on_the_command_line else f"{path.name}: "

    return source


def place_plugins(raw: dict[str, Any], folder: Path) -> None:
    """Make the paths of plugins absolute, in place: a recipe's from it, an override's from here."""
    places = raw.get("plugins")
    if isinstance(places, list):
        raw["plugins"] = [place_of(place, folder) if isinstance(place, str) else place for place in places]


def import_plugins(raw: Mapping[str, Any], source: Callable[[str], str]) -> None:
    """Import the plugins of a config before it is built, so that a fault says who named them. Raises UserError."""
    places = raw.get("plugins")
    if isinstance(places, list) and all(isinstance(place, str) for place in places):
        try:
            load_plugins(read_plugins(places))
        except UserError as error:
            raise UserError(f"{source('plugins')}{error}") from None


def changed(raw: Mapping[str, Any], changes: Sequence[Mapping[str, Any]], *, source: str) -> RunConfig:
    """Build a run config from sections and dotted changes, the later ones winning. Raises UserError, naming source."""
    return build(RunConfig, merged(raw, changes, source=source), source=lambda _: f"{source}: ")


def merged(raw: Mapping[str, Any], changes: Sequence[Mapping[str, Any]], *, source: str) -> dict[str, Any]:
    """Return the sections with dotted changes, the later ones winning, unchecked. Raises UserError, naming source."""
    result: dict[str, Any] = _copied(raw)
    for key, value in (item for change in changes for item in change.items()):
        *sections, last = key.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise UserError(f"{source}: {section} is a section, this is {place!r}")
        place[last] = value
    return result


def _copied(raw: Any) -> Any:
    return {key: _copied(value) for key, value in raw.items()} if isinstance(raw, Mapping) else raw


def recipe_path(recipe: str | Path, *, folder: Path = RECIPES, kind: str = "recipe") -> Path:
    """Return the file of a recipe: a bare name is one of those shipped in the folder, anything else a path.

    Raises UserError.
    """
    path = Path(recipe).expanduser()
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if not path.is_file():
            raise UserError(f"{path}: no such {kind} file")
        return path
    shipped = {file.stem: file for file in folder.glob("*.yaml")}
    if str(recipe) not in shipped:
        raise UserError(f"{kind} {str(recipe)!r} does not exist.{did_you_mean(str(recipe), shipped)}")
    return shipped[str(recipe)]
