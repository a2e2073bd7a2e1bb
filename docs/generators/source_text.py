"""Descriptions that the source gives of names: the string or comment beside an assignment, a docstring's beginning."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from pft_core.data import SOURCES
from pft_core.evaluation import TASKS
from pft_core.objectives import OBJECTIVES
from pft_core.training.engines.registry import ENGINES
from pipelines.serve.engine_registry import SERVING_ENGINES

LONE, TRAILING = "lone", "trailing"  # a comment on a line of its own, or behind code


@cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a source file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def first_sentence(text: str | None) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


def descriptions(path: Path, body: Sequence[ast.stmt]) -> dict[str, str]:
    """Return what a body says of each name that it assigns: the string below it, else the comment beside or above."""
    found = {}
    for i, node in enumerate(body):
        for name in assigned_names(node):
            found[name] = string_below(body[i + 1 : i + 2]) or comment_of(path, node)
    return found


def assigned_names(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement assigns."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in targets:
        yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))


def string_below(following: Sequence[ast.stmt]) -> str:
    """Return the string that stands right below an assignment, if one does."""
    for node in following:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return first_sentence(node.value.value)
    return ""


def comment_of(path: Path, node: ast.stmt) -> str:
    """Return the comments behind a statement's lines, else those on the lines right above it."""
    found = comments(path)
    lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
    behind = [found[line][1] for line in lines if found.get(line, ("",))[0] == TRAILING]
    return sentence(" ".join(behind or reversed(list(lone_comments(found, node.lineno - 1)))))


def lone_comments(found: dict[int, tuple[str, str]], line: int) -> Iterator[str]:
    while found.get(line, ("",))[0] == LONE:
        yield found[line][1]
        line -= 1


def sentence(text: str) -> str:
    """Return a comment as a sentence, without a linter's directives. A name at its beginning stays as it is."""
    text = re.sub(r"\s*(# )?(type: ignore|noqa|ruff:).*", "", text).strip()
    first = re.match(r"[a-z]+(?=[ ,;]|\.?$)", text)
    if first and first[0] not in registered_names():
        text = text[:1].upper() + text[1:]
    return f"{text}." if text and text[-1] not in ".:?!" else text


@cache
def registered_names() -> frozenset[str]:
    return frozenset(name for registry in (OBJECTIVES, SOURCES, ENGINES, SERVING_ENGINES, TASKS) for name in registry)


@cache
def comments(path: Path) -> dict[int, tuple[str, str]]:
    """Return the comments of a file by line: LONE or TRAILING, and the text."""
    source = path.read_text(encoding="utf-8")
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            kind = TRAILING if token.line[: token.start[1]].strip() else LONE
            found[token.start[0]] = (kind, token.string.lstrip("# "))
    return found
