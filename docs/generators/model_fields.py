"""What the source says of the fields of a pydantic model."""

import ast
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from docs.generators.source_text import descriptions, parsed


def field_descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Return a description of each field, by the key that a user writes.

    It is pydantic's own, else the string or comment beside the field in the source.
    """
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            found |= descriptions(source_of(base), class_body(base))
    own = {name: field.description for name, field in model.model_fields.items() if field.description}
    said = {name: found.get(name, "") for name in model.model_fields} | own
    return {field.alias or name: said[name] for name, field in model.model_fields.items()}


def class_body(model: type) -> list[ast.stmt]:
    tree = parsed(source_of(model))
    return next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == model.__name__)


def source_of(model: type) -> Path:
    return Path(str(sys.modules[model.__module__].__file__))


def purpose(model: type) -> str:
    """Return a class's own docstring, not an inherited one."""
    return inspect.cleandoc(model.__dict__.get("__doc__") or "")


def subclasses(models: Iterable[type[BaseModel]]) -> dict[str, type[BaseModel]]:
    """Return these models and all that are made of them, by name."""
    found: dict[str, type[BaseModel]] = {}
    for model in models:
        found |= {model.__name__: model} | subclasses(model.__subclasses__())
    return found
