"""The public names: what the doors of the rooms offer, where each is defined, and whether it says what it is."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.house import ROOT, source_files
from docs.generators.source_text import descriptions, parsed
from pft_core.lazy import exported_names

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class PublicName:
    """A name that a door offers. module: where it is defined; definition: None for a constant."""

    room: str
    name: str
    module: str
    path: Path
    definition: Definition | None
    description: str

    @property
    def place(self) -> str:
        """Return file, line and name, for a message."""
        line = f":{self.definition.lineno}" if self.definition else ""
        return f"{self.path.relative_to(ROOT)}{line} {self.name}"


@cache
def rooms() -> dict[str, list[PublicName]]:
    """Return the public names of every package of pft_core and pipelines that has a door."""
    files = source_files()
    doors = {name: path for name, path in files.items() if path.name == "__init__.py" and name.startswith("p")}
    offered = {room: [public_name(room, name) for name in exported_names(room, doors[room])] for room in doors}
    return {room: names for room, names in offered.items() if names}


def public_name(room: str, name: str) -> PublicName:
    """Look up where a name of a door is defined, through the doors and modules that pass it on."""
    files, module = source_files(), room
    while passed_on := [m for m, names in imported(files[module]).items() if name in names and m in files]:
        module = passed_on[0]
    body = parsed(files[module]).body
    found = next((node for node in body if isinstance(node, Definition) and node.name == name), None)
    said = (ast.get_docstring(found) or "") if found else descriptions(files[module], body).get(name, "")
    return PublicName(room, name, module, files[module], found, said)


def imported(path: Path) -> dict[str, set[str]]:
    """Return the names that a module imports at its top, or for type checkers, by the module that they are from."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.setdefault(node.module, set()).update(alias.name for alias in node.names)
    return found


def undocumented() -> Iterator[str]:
    """Yield the place of every public name, and of every public method of one, that nothing describes."""
    for name in {(each.module, each.name): each for names in rooms().values() for each in names}.values():
        if not name.description:
            yield name.place
        if isinstance(name.definition, ast.ClassDef):
            for method in public_methods(name.definition):
                if not ast.get_docstring(method):
                    yield f"{name.path.relative_to(ROOT)}:{method.lineno} {name.name}.{method.name}"


def public_methods(definition: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return the methods and properties of a class that a user may call."""
    functions = [node for node in definition.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [node for node in functions if not node.name.startswith("_")]
