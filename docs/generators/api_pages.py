"""The API reference: a page per room, its names with their docstrings."""

import ast

from benchmarks.house import source_files
from docs.generators.public_names import rooms
from docs.generators.source_text import first_sentence, parsed

FOLDER = "api"


def pages() -> dict[str, str]:
    """Return the pages by path: one for each room, and the list of rooms."""
    return {f"{FOLDER}/index.md": index_page(), **{page_path(room): room_page(room) for room in rooms()}}


def page_path(room: str) -> str:
    return f"{FOLDER}/{room}.md"


def room_page(room: str) -> str:
    """Return the page of a room. A name that an outer door offers too is documented there, once."""
    own = [name for name in rooms()[room] if homes()[name.module, name.name] == room]
    parts = [f"# `{room}`", room_docstring(room), *elsewhere(room)]
    for name in sorted(own, key=lambda each: (each.definition is None, each.name)):
        parts.append(f"::: {name.module}.{name.name}" + ("" if name.definition else f"\n\n{name.description}"))
    return "\n\n".join(parts) + "\n"


def homes() -> dict[tuple[str, str], str]:
    """Return the outermost room that offers a name, by the name's module and itself."""
    by_depth = sorted(rooms(), key=lambda room: (-room.count("."), room))
    return {(name.module, name.name): room for room in by_depth for name in rooms()[room]}


def elsewhere(room: str) -> list[str]:
    """Return a sentence on the names of a room that another page documents, if there are such."""
    others: dict[str, list[str]] = {}
    for name in rooms()[room]:
        if (home := homes()[name.module, name.name]) != room:
            others.setdefault(home, []).append(f"[`{name.name}`][{name.module}.{name.name}]")
    return [f"Offered by [`{home}`]({home}.md) too: {', '.join(sorted(names))}." for home, names in others.items()]


def index_page() -> str:
    lines = [
        "# API reference",
        "",
        "A package is a *room*: its `__init__` names everything that others may import from it. A plugin imports what "
        "it needs by the same names.",
        "",
        "| Room | Contents |",
        "|---|---|",
    ]
    lines += [f"| [`{room}`]({room}.md) | {first_sentence(room_docstring(room))} |" for room in rooms()]
    return "\n".join(lines) + "\n"


def room_docstring(room: str) -> str:
    return ast.get_docstring(parsed(source_files()[room])) or ""
