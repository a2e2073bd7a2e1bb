"""Pieces of Markdown that generated pages are made of."""

import re
from collections.abc import Iterable, Sequence

NOTHING = "-"  # in a cell
CODE_WITH_BARS = re.compile(r"`([^`]*\|[^`]*)`")
ACTIVE = str.maketrans({sign: f"&#{ord(sign)};" for sign in "&<>|*_[]"})  # what Markdown or HTML would read as its own


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table. A cell may hold any Markdown on one line."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines)


def cell(text: str) -> str:
    """Return a text as a cell. Markdown would end the cell at a bar, and shows a backslash before one in code."""
    text = CODE_WITH_BARS.sub(lambda match: f"<code>{match[1].translate(ACTIVE)}</code>", " ".join(text.split()))
    return text.replace("|", "\\|") or NOTHING


def code(text: object) -> str:
    """Return a value as code, or "" for None and an empty text."""
    return "" if text is None or text == "" else f"`{text}`"


def page(*parts: str) -> str:
    """Return a page of paragraphs; empty ones are left out."""
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


def paragraphs(text: str) -> str:
    """Return a docstring with its paragraphs on one line each, as Markdown reads them."""
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))
