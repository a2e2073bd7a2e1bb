"""The reference of config keys, from the settings themselves, and the shipped recipes, each number with its reason."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from benchmarks.house import ROOT
from docs.generators.markdown import code, page, paragraphs, table
from docs.generators.model_fields import field_descriptions, purpose, subclasses
from docs.generators.schema_types import json_text, type_text
from docs.generators.verb_pages import commands
from pft_core.settings import Settings
from pipelines.compare.suite import Suite
from pipelines.config import RunConfig
from pipelines.evaluate.evaluate_config import EvaluateConfig
from pipelines.prepare.prepare_config import PrepareConfig
from pipelines.serve.serve_config import ServeConfig

ROOTS: dict[str, tuple[type[BaseModel], str]] = {  # the config of each part, and who reads it
    "Training": (RunConfig, "`pft train`, `pft tune` and `pft quickstart` read these keys from a recipe."),
    "Serving": (ServeConfig, "`pft serve` reads these keys from a serving recipe."),
    "Comparison": (Suite, "`pft compare` reads these keys from a suite."),
    "Preparation": (
        PrepareConfig,
        "`pft prepare` takes these keys as options. `prompt` and `encoding` (see [Training](#training)) have their "
        "defaults there: the training of a recipe with other values encodes again.",
    ),
    "Evaluation": (
        EvaluateConfig,
        "`pft evaluate` takes these keys as options. A trained run brings its own `prompt`; a base model is asked by "
        "the defaults (see [Training](#training)). `MLFLOW_TRACKING_URI` sets `tracking.uri`.",
    ),
}
VERBS = {"Preparation": "prepare", "Evaluation": "evaluate"}  # whose options are the keys
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
        "A config is a YAML file. Keys of a recipe or suite can also be given on the command line: `train.lr=1e-4`. "
        "An unknown key is an error. `pft show config RECIPE` prints a recipe with all defaults, and the numbers that "
        "follow from it. See [the shipped recipes](recipes.md).",
    ]
    for title, (model, said) in ROOTS.items():
        parts += [f"## {title}", said, *sections(model, title)]
    return page(*parts)


def sections(model: type[BaseModel], title: str) -> Iterator[str]:
    """Yield a table for the keys of a model, then one for each section in it."""
    yield option_table(model, VERBS[title]) if title in VERBS else key_table(model, "")
    for place, each, said in nested(model, ""):
        if place.rstrip(".") in SHOWN_ABOVE and model is not RunConfig:
            continue
        yield f"### {title}: `{place.rstrip('.')}`"
        yield paragraphs(purpose(each))
        yield said
        yield key_table(each, place)


def nested(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel], str]]:
    """Yield the sections of a model: the beginning of their keys (`train.`, `sizes.NAME.`), model, description."""
    known, said = subclasses([Settings]), field_descriptions(model)
    for name, schema in model.model_json_schema()["properties"].items():
        for inner, between in references(schema, ""):
            if inner in known and name not in ("t", "space"):
                place = f"{prefix}{name}{between}."
                yield place, known[inner], said[name]
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
    """Return the table of a model's keys."""
    rows = [(code(prefix + name), *row) for name, *row in key_rows(model)]
    return table(("Key", "Type", "Default", "Meaning"), rows) if rows else ""


def option_table(model: type[BaseModel], verb: str) -> str:
    """Return the table of a model's keys, each with the option of a verb that sets it."""
    command = dict(commands())[verb]
    options = {each.name: "/".join([*each.opts, *each.secondary_opts]) for each in command.params}
    rows = [(code(name), code(options[{"plugins": "plugin"}.get(name, name)]), *row) for name, *row in key_rows(model)]
    return table(("Key", "Option", "Type", "Default", "Meaning"), rows)


def key_rows(model: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, type, default and meaning of a model's keys, without those that are sections."""
    said, schema = field_descriptions(model), model.model_json_schema()
    sections = {place.split(".")[0].removesuffix("[]") for place, *_ in nested(model, "")}
    for name, field in schema["properties"].items():
        if name not in sections:
            yield name, type_text(field, plain_name), default(model.model_fields[name]), said[name]


def default(field: FieldInfo) -> str:
    """Return the default of a key as YAML."""
    if field.is_required():
        return "required"
    return code(json_text(to_jsonable_python(field.get_default(call_default_factory=True))))


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
