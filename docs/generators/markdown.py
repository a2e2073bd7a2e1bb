"""Pieces of Markdown that generated pages are made of."""

from collections.abc import Iterable, Sequence

NOTHING = "-"  # in a cell


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table. A cell may hold any Markdown on one line."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines)


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or NOTHING


def code(text: object) -> str:
    """Return a value as code; no value as nothing."""
    return "" if text is None or text == "" else f"`{text}`"


def page(*parts: str) -> str:
    """Return a page of paragraphs; empty ones are left out."""
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


def paragraphs(text: str) -> str:
    """Return a docstring with its paragraphs on one line each, as Markdown reads them."""
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))
