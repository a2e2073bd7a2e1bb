"""The reference of config keys, from the settings themselves, and the shipped recipes, each number with its reason."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from benchmarks.house import ROOT
from docs.generators.markdown import code, page, paragraphs, table
from docs.generators.model_fields import field_descriptions, purpose, subclasses
from docs.generators.schema_types import json_text, type_text
from pft_core.settings import Settings
from pipelines.compare.suite import Suite
from pipelines.config import RunConfig
from pipelines.evaluate.evaluate_config import EvaluateConfig
from pipelines.prepare.prepare_config import PrepareConfig
from pipelines.serve.serve_config import ServeConfig

ROOTS: dict[str, tuple[type[BaseModel], str]] = {
    "Training": (RunConfig, "`pft train`, `pft tune` and `pft quickstart` read these keys from a recipe."),
    "Serving": (ServeConfig, "`pft serve` reads these keys from a serving recipe."),
    "Comparison": (Suite, "`pft compare` reads these keys from a suite."),
    "Preparation": (PrepareConfig, "The options of `pft prepare` set these."),
    "Evaluation": (EvaluateConfig, "The options of `pft evaluate` set these."),
}
SHOWN_ABOVE = {"prompt", "encoding", "tracking"}  # sections of later roots that the first one has shown
FOLDERS = {
    "Training": "pipelines/recipes",
    "Serving": "pipelines/serve/recipes",
    "Comparison": "pipelines/compare/suites",
}


def pages() -> dict[str, str]:
    """Return the two pages by path."""
    return {"configuration.md": configuration(), "recipes.md": recipes()}


def configuration() -> str:
    parts = [
        "# Configuration",
        "A config is a YAML file. Every key can be given on the command line too: `train.lr=1e-4`. An unknown key is "
        "an error. `pft show config RECIPE` prints a recipe with all defaults, and the numbers that follow from it. "
        "See [the shipped recipes](recipes.md).",
    ]
    for title, (model, said) in ROOTS.items():
        parts += [f"## {title}", said, *sections(model, title)]
    return page(*parts)


def sections(model: type[BaseModel], title: str) -> Iterator[str]:
    """Yield a table for the keys of a model, then one for each section in it."""
    for place, each in [("", model), *nested(model, "")]:
        if place.rstrip(".") in SHOWN_ABOVE and model is not RunConfig:
            continue
        if place:
            yield f"### {title}: `{place.rstrip('.')}`"
            yield paragraphs(purpose(each))
        yield key_table(each, place)


def nested(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the sections of a model with the beginning of their keys: `train.`, and `NAME.` of mappings."""
    known = subclasses([Settings])
    for name, schema in model.model_json_schema()["properties"].items():
        for inner, between in references(schema, ""):
            if inner in known and name not in ("t", "space"):
                place = f"{prefix}{name}{between}."
                yield place, known[inner]
                yield from nested(known[inner], place)


def references(schema: Any, between: str) -> Iterator[tuple[str, str]]:
    """Yield the names of the models in a field's schema, and what stands between its key and theirs."""
    if "$ref" in schema:
        yield schema["$ref"].rpartition("/")[2], between
    for each in schema.get("anyOf", []):
        yield from references(each, between)
    for key, step in (("items", "[]"), ("additionalProperties", ".NAME")):
        if isinstance(schema.get(key), Mapping):
            yield from references(schema[key], between + step)


def key_table(model: type[BaseModel], prefix: str) -> str:
    """Return the table of a model's keys, without those that are sections."""
    said, schema = field_descriptions(model), model.model_json_schema()
    sections = {place.split(".")[0].removesuffix("[]") for place, _ in nested(model, "")}
    required = schema.get("required", [])
    rows = [
        (code(prefix + name), type_text(field, plain_name), default(name in required, field), said[name])
        for name, field in schema["properties"].items()
        if name not in sections
    ]
    return table(("Key", "Type", "Default", "Meaning"), rows) if rows else ""


def default(is_required: bool, field: Mapping[str, Any]) -> str:
    if is_required:
        return "required"
    return code(json_text(field["default"])) if "default" in field else ""


def plain_name(name: str) -> str:
    return {"Range": "range (`low`, `high`, `log`)"}.get(name, name)


def recipes() -> str:
    """Return the page of all shipped recipes and suites, as they are."""
    parts = ["# Recipes", "A bare name on the command line is one of these files. Copy one to change it."]
    for title, folder in FOLDERS.items():
        parts.append(f"## {title}")
        for path in sorted((ROOT / folder).glob("*.yaml")):
            parts += [f"### `{path.stem}`", recipe(path)]
    return page(*parts)


def recipe(path: Path) -> str:
    return f'```yaml title="{path.relative_to(ROOT)}"\n{path.read_text(encoding="utf-8").strip()}\n```'
