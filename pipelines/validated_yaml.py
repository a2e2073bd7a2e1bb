"""YAML and overrides into a validated model; every error names the config key, its value and what to do."""

import difflib
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import yaml
from pydantic import BaseModel, ValidationError

from pft_core.errors import UserError

ModelT = TypeVar("ModelT", bound=BaseModel)
DEEPEST = 40  # levels of nested lists and sections in a recipe
LARGEST_BITS = 1000  # of an integer: beyond about 13,000, Python refuses to print it


class _Loader(yaml.SafeLoader):
    """YAML as people write it.

    1e-4 is a number, where YAML 1.1 wants 1.0e-4 and would return a string; 010 is not octal, and 1:30 not base 60. A
    repeated key is an error, since the last one would silently win, and so is a key that is not a single word.
    """

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value: int = super().construct_yaml_int(node)
        if value.bit_length() > LARGEST_BITS:
            problem = f"an integer of {value.bit_length()} bits"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a single word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is repeated", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that the loader would read as a number."""


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"^[-+]?(0|[1-9][\d_]*|0b[01_]+|0x[\da-fA-F_]+)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"^([-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d+(?=[eE]))([eE][-+]?\d+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for tag, pattern in _NUMBERS.items():
    for each in (_Loader, _Dumper):
        each.add_implicit_resolver(tag, pattern, list("-+.0123456789"))


def dump_yaml(config: Mapping[str, Any]) -> str:
    """Return a config as YAML that `read_yaml` reads back unchanged."""
    return yaml.dump(config, Dumper=_Dumper, sort_keys=False)


class _FaultyYamlError(Exception):
    """What is wrong with a YAML text, and its line, counted from 1, if known."""

    def __init__(self, fault: str, line: int | None = None):
        super().__init__(fault)
        self.line = line


def _loaded(text: str, kind: Any = Any) -> Any:
    """Read YAML; a bare word for a string field stays that string, even if YAML reads it as another type.

    kind: type annotation of the value. Raises _FaultyYamlError.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_loops(node, (), set())
        _keep_bare_strings(node, kind)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _FaultyYamlError(str(error.problem), line) from None
    except RecursionError:
        raise _FaultyYamlError("nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:  # such as the date 2024-13-01
        raise _FaultyYamlError(str(error).partition("\n")[0]) from None


def _refuse_loops(node: yaml.Node, above: tuple[yaml.Node, ...], checked: set[yaml.Node]) -> None:
    """Raise MarkedYAMLError for a node that contains itself through an alias, or is nested too deeply."""
    if node in above or len(above) > DEEPEST:
        problem = "it contains itself" if node in above else f"nested deeper than {DEEPEST} levels"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    for inner in _inside(node):
        if not isinstance(inner, yaml.ScalarNode) and inner not in checked:  # many aliases may lead to one node
            _refuse_loops(inner, (*above, node), checked)
    checked.add(node)


def _inside(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _keep_bare_strings(node: yaml.Node, kind: Any) -> None:
    """Tag every bare word for a string field as a string, so that `no`, 1e3 and 007 stay as written."""
    if kind is Any:
        return
    if isinstance(node, yaml.ScalarNode):
        is_none = node.value in ("null", "") and _may_be_none(kind)
        if node.style is None and _is_text(kind) and not is_none:
            node.tag = "tag:yaml.org,2002:str"
    elif isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            _keep_bare_strings(inner, _type_inside(kind, "0"))
    elif isinstance(node, yaml.MappingNode):
        for key, inner in node.value:
            _keep_bare_strings(inner, _type_inside(kind, str(key.value)))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file. Raises UserError with file:line for a syntax error."""
    try:
        raw = _loaded(path.read_text(encoding="utf-8"))
    except _FaultyYamlError as error:
        line = "" if error.line is None else f":{error.line}"
        raise UserError(f"{path}{line}: not valid YAML: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict | None):
        raise UserError(f"{path}: expected a mapping of keys to values, got a {type(raw).__name__}")
    return raw or {}


def apply_override(raw: dict[str, Any], override: str, model: type[BaseModel]) -> str:
    """Set one `a.b=value` in the raw config of a model; return its key.

    The value of a string field is taken literally, without surrounding quotes; `null` or an empty value is None if the
    model allows that. Other values are read as YAML. Raises UserError.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{_short(override)}: expected an override KEY=VALUE, such as train.lr=1e-4")
    try:
        value = _override_value(text, _type_at(model, key))
    except _FaultyYamlError as error:
        raise UserError(
            f"{_short(override)}: the value is not valid YAML ({error}); put a string in quotes: "
            f"{_short(key)[1:-1]}='\"...\"'"
        ) from None
    *sections, last = key.split(".")
    for name in sections:
        if not isinstance(raw.get(name), dict):
            raw[name] = {}
        raw = raw[name]
    raw[last] = value
    return key


def _override_value(text: str, kind: Any) -> Any:
    if not _is_text(kind):
        return _loaded(text, kind)
    if _may_be_none(kind) and text in ("null", ""):
        return None
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if is_quoted else text


def _type_at(model: type[BaseModel], key: str) -> Any:
    """Return the type annotation of a dotted key; Any if the model does not have it."""
    kind: Any = model
    for name in key.split("."):
        kind = _type_inside(kind, name)
    return kind


def _type_inside(kind: Any, name: str) -> Any:
    for branch in _branches(kind):
        if _is_section(branch):
            return branch.model_fields[name].annotation if name in branch.model_fields else Any
        if typing.get_origin(branch) is dict or (typing.get_origin(branch) is list and name.isdigit()):
            return typing.get_args(branch)[-1]
    return Any


def _branches(kind: Any) -> list[Any]:
    """Return the members of a union or an annotated type."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return _branches(typing.get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return [branch for part in typing.get_args(kind) for branch in _branches(part)]
    return [kind]


def _is_text(kind: Any) -> bool:
    """Return whether every value of this type, except None, is a string."""
    texts = [branch for branch in _branches(kind) if branch is not type(None)]
    return bool(texts) and all(
        branch is str
        or (typing.get_origin(branch) is Literal and all(isinstance(v, str) for v in typing.get_args(branch)))
        for branch in texts
    )


def _may_be_none(kind: Any) -> bool:
    return type(None) in _branches(kind)


def build(model: type[ModelT], raw: dict[str, Any], *, source: Callable[[str], str] = lambda key: "") -> ModelT:
    """Validate a raw mapping. source: returns the prefix of an error about a key, such as a file name.

    Raises UserError with one line per fault.
    """
    try:
        # strict: "8" for a number or 1 for a bool is a typo, which pydantic would otherwise accept
        return model.model_validate(raw, strict=True)
    except ValidationError as error:
        faults = _faults(error, model, raw)
        raise UserError("\n".join(f"{source(key)}{text}" for key, text in faults.items())) from None


def _faults(error: ValidationError, model: type[BaseModel], raw: dict[str, Any]) -> dict[str, str]:
    """Return a sentence for each faulty key, in terms of the config instead of pydantic's."""
    faults: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        key = _dotted(fault["loc"], raw, missing=fault["type"] == "missing")
        if fault["type"] == "extra_forbidden":
            faults[key] = f"{key}: unknown key.{nearest_key(key, model)}"
        elif fault["type"] == "missing":
            faults[key] = f"{key} is not set: add {key}=..."
        elif fault["type"] == "invalid_key":
            faults[key] = f"{key or fault['input']}: a key must be a string: put it in quotes"
        elif fault["type"] == "value_error":
            mistake = fault["ctx"][
                "error"
            ]  # a UserError about the whole config, such as a plugin's, names its own place
            faults[key] = (
                str(mistake) if not key and isinstance(mistake, UserError) else f"{key or 'config'}: {mistake}"
            )
        elif key in faults:  # a union has one fault per branch
            faults[key] += f", or {_expected(fault['msg'])}"
        else:
            faults[key] = f"{key}={_short(fault['input'])}: expected {_expected(fault['msg'])}"
    return faults


def _dotted(place: tuple[int | str, ...], raw: Any, *, missing: bool) -> str:
    """Return the dotted key of a pydantic location, without the type names that a union adds."""
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
    text = text.replace("String should match pattern", "a string that matches").replace("a integer", "an integer")
    return "a section of keys" if text.startswith("a dictionary or instance") else text


def _short(value: Any) -> str:
    # With aliases, a list of a few lines may hold millions of values.
    text = reprlib.repr(value) if isinstance(value, list | dict) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that an override can set, sections included; list items have none."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for branch in _branches(field.annotation):
            if _is_section(branch):
                yield from keys(branch, f"{prefix}{name}.")
            elif typing.get_origin(branch) is dict:
                names, inner = typing.get_args(branch)
                for known in typing.get_args(names) if typing.get_origin(names) is Literal else ():
                    yield f"{prefix}{name}.{known}"
                    yield from keys(inner, f"{prefix}{name}.{known}.") if _is_section(inner) else ()


def nearest_key(key: str, model: type[BaseModel]) -> str:
    """Return " Did you mean 'train.lr'?": the same word elsewhere, a near word here, or a near word elsewhere."""
    place, _, word = key.rpartition(".")
    sections = [branch for branch in _branches(_type_at(model, place) if place else model) if _is_section(branch)]
    here = {name: f"{place}.{name}" if place else name for section in sections for name in section.model_fields}
    elsewhere = {known.rpartition(".")[2]: known for known in reversed(list(keys(model)))}
    for candidates, cutoff in ((elsewhere, 1.0), (here, 0.6), (elsewhere, 0.7)):
        near = difflib.get_close_matches(word, candidates, n=1, cutoff=cutoff)
        if near:
            return f" Did you mean {candidates[near[0]]!r}?"
    return f" Known: {', '.join(sorted(here.values()))}."


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and issubclass(kind, BaseModel)
