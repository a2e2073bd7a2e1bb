"""Recipes: build a config from a shipped recipe or a YAML file, and overrides from the command line."""

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
    """Read a shipped recipe by name, or a YAML file, and apply overrides such as `train.lr=1e-4`.

    If the file is the config.yaml of a run, `storage` becomes the folder that holds the run now.
    Raises UserError.
    """
    path = recipe_path(recipe)
    raw = read_yaml(path)
    place_plugins(raw, path.parent)
    if (path.parent / JOB_NAME).is_file():
        raw["storage"] = os.path.normpath(path.parent / "..")
    overridden = [apply_override(raw, override, RunConfig) for override in overrides]
    _drop_settings_of_replaced_engine(raw, overridden)
    place_plugins(raw, Path.cwd())
    source = source_of(path, overridden)
    import_plugins(raw, source)
    config = build(RunConfig, raw, source=source)
    if "train.epochs" in overridden and config.train.max_steps is not None:
        raise UserError(
            f"train.epochs={config.train.epochs:g} has no effect beside train.max_steps={config.train.max_steps}: add "
            "train.max_steps=null, or leave out train.epochs"
        )
    return config


def _drop_settings_of_replaced_engine(raw: dict[str, Any], overridden: Sequence[str]) -> None:
    """Drop the recipe's DeepSpeed settings, in place, if the command line sets another engine."""
    if "engine.name" in overridden and "engine.zero_stage" not in overridden and raw["engine"]["name"] == "torch":
        raw["engine"].pop("zero_stage", None)


def source_of(path: Path, overridden: Sequence[str]) -> Callable[[str], str]:
    """Return a function that prefixes an error about a key: the file name, or "" if the command line set the key."""

    def source(key: str) -> str:
        on_the_command_line = any(f"{o}.".startswith(f"{key}.") or key.startswith(f"{o}.") for o in overridden)
        return "" if on_the_command_line else f"{path.name}: "

    return source


def place_plugins(raw: dict[str, Any], folder: Path) -> None:
    """Make the paths of plugins absolute, in place, relative to this folder."""
    places = raw.get("plugins")
    if isinstance(places, list):
        raw["plugins"] = [place_of(place, folder) if isinstance(place, str) else place for place in places]


def import_plugins(raw: Mapping[str, Any], source: Callable[[str], str]) -> None:
    """Import the plugins of a config before it is built, so that errors name their source. Raises UserError."""
    places = raw.get("plugins")
    if isinstance(places, list) and all(isinstance(place, str) for place in places):
        try:
            load_plugins(read_plugins(places))
        except UserError as error:
            raise UserError(f"{source('plugins')}{error}") from None


def config_with_changes(raw: Mapping[str, Any], changes: Sequence[Mapping[str, Any]], *, source: str) -> RunConfig:
    """Build a run config from sections and dotted changes; later changes win. Raises UserError that names source."""
    return build(RunConfig, apply_changes(raw, changes, source=source), source=lambda _: f"{source}: ")


def apply_changes(raw: Mapping[str, Any], changes: Sequence[Mapping[str, Any]], *, source: str) -> dict[str, Any]:
    """Return the sections with dotted changes applied, unvalidated; later changes win. Raises UserError."""
    result: dict[str, Any] = _copied(raw)
    for key, value in (item for change in changes for item in change.items()):
        *sections, last = key.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise UserError(f"{source}: {section}: expected a section of keys, got {place!r}")
        place[last] = value
    return result


def _copied(raw: Any) -> Any:
    return {key: _copied(value) for key, value in raw.items()} if isinstance(raw, Mapping) else raw


def recipe_path(recipe: str | Path, *, folder: Path = RECIPES, kind: str = "recipe") -> Path:
    """Return the file of a recipe: a bare name is looked up in the folder of shipped ones, all else is a path.

    Raises UserError if there is no such file.
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
