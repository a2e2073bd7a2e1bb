"""YAML and overrides in, a validated model out; every fault is said in the user's words, with place and value."""

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pft_core.errors import UserError

ModelT = TypeVar("ModelT", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-4 is a number (YAML 1.1 wants 1.0e-4 and would hand back a string), and a key that
    stands twice is a mistake (the last would silently win)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file. Raises UserError with file:line for a syntax error."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict | None):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, this is a {type(raw).__name__}")
    return raw or {}


def apply_override(raw: dict[str, Any], override: str) -> str:
    """Set one `a.b=value` in the raw config; return its key."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r}: an override is written key=value, such as train.lr=1e-4")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise UserError(f"{override!r}: the value is not valid YAML; put it in quotes: {key}='\"...\"'") from None
    *sections, last = key.split(".")
    for name in sections:
        if not isinstance(raw.get(name), dict):
            raw[name] = {}
        raw = raw[name]
    raw[last] = value
    return key


def build(model: type[ModelT], raw: dict[str, Any], *, source: Callable[[str], str] = lambda key: "") -> ModelT:
    """Validate a raw mapping; `source(key)` says where a key comes from. Raises UserError, a line for each fault."""
    try:
        # strict: "8" for a number or 1 for a bool is a typing mistake, which pydantic would otherwise let pass
        return model.model_validate(raw, strict=True)
    except ValidationError as error:
        faults = _faults(error, model, raw)
        raise UserError("\n".join(f"{source(key)}{text}" for key, text in faults.items())) from None


def _faults(error: ValidationError, model: type[BaseModel], raw: dict[str, Any]) -> dict[str, str]:
    """Return a sentence for each faulty key, in the words of the config and not in pydantic's."""
    faults: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        key = _dotted(fault["loc"], raw, missing=fault["type"] == "missing")
        if fault["type"] == "extra_forbidden":
            faults[key] = f"{key}: unknown key.{nearest_key(key, list(keys(model)))}"
        elif fault["type"] == "missing":
            faults[key] = f"{key} is not set: add {key}=..."
        elif fault["type"] == "value_error":
            mistake = fault["ctx"]["error"]  # a UserError of the whole says its own place, such as a plugin's
            faults[key] = (
                str(mistake) if not key and isinstance(mistake, UserError) else f"{key or 'config'}: {mistake}"
            )
        elif key in faults:  # one fault for each branch of a union
            faults[key] += f", or {_expected(fault['msg'])}"
        else:
            value = "" if fault["type"] == "invalid_key" else f"={_short(fault['input'])}"
            faults[key] = f"{key}{value}: expected {_expected(fault['msg'])}"
    return faults


def _dotted(place: tuple[int | str, ...], raw: Any, *, missing: bool) -> str:
    """Return the key that a pydantic location names; a union adds names of types, which are not part of the key."""
    names = []
    for name in place:
        inside = name in raw if isinstance(raw, dict) else isinstance(raw, list) and isinstance(name, int)
        if not inside:
            break
        names.append(str(name))
        raw = raw[name]
    return ".".join([*names, str(place[-1])] if missing else names)


def _expected(message: str) -> str:
    text = message.removeprefix("Input should be ").replace("a valid ", "a ")
    text = text.replace("String should match pattern", "text that matches").replace("a integer", "an integer")
    return "a section of keys" if text.startswith("a dictionary or instance") else text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that a config may hold, sections included."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for part in typing.get_args(field.annotation) or (field.annotation,):
            if isinstance(part, type) and not isinstance(part, types.GenericAlias) and issubclass(part, BaseModel):
                yield from keys(part, f"{prefix}{name}.")


def nearest_key(key: str, known: Sequence[str]) -> str:
    """Return " Did you mean 'train.lr'?": the same word in another section, a near one here, a near one elsewhere."""
    place, _, word = key.rpartition(".")
    leaf = {k: k.rpartition(".")[2] for k in known}
    here = {leaf[k]: k for k in known if k.rpartition(".")[0] == place}
    elsewhere = {leaf[k]: k for k in reversed(known)}
    for candidates, cutoff in ((elsewhere, 1.0), (here, 0.6), (elsewhere, 0.7)):
        near = difflib.get_close_matches(word, candidates, n=1, cutoff=cutoff)
        if near:
            return f" Did you mean {candidates[near[0]]!r}?"
    return f" Known: {', '.join(sorted(here.values()))}."
