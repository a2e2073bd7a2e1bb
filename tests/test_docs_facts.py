"""The pages name what the code has: messages in the troubleshooting, reasons of rejects, verbs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import typer

from docs.generators.architectures import architectures
from docs.generators.markdown import cell
from pft_core.scoring.tree_decoder import SUPPORTED_MODEL_TYPES
from pipelines.cli import app

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SHORTEST_PART = 8  # of a message, between the values in it: less may stand anywhere


def trees() -> Iterator[ast.AST]:
    for package in ("pft_core", "pipelines", "cluster"):
        for path in (ROOT / package).rglob("*.py"):
            yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def spelled(node: ast.AST) -> str:
    """Return a text of the code, with "…" for each value that it is given."""
    if isinstance(node, ast.JoinedStr):
        return "".join(spelled(part) for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


def test_every_message_of_the_troubleshooting_is_one_of_the_code() -> None:
    texts = "\n".join(spelled(node) for node in trees() if isinstance(node, ast.JoinedStr | ast.Constant))
    headings = re.findall(r"^### (.*)$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    messages = [message for heading in headings for message in re.findall(r"`([^`]+)`", heading)]
    parts = [part.strip(" ,:;()'?") for message in messages for part in message.split("…")]
    assert [part for part in parts if len(part) >= SHORTEST_PART and part not in texts] == []


def test_every_reason_of_a_reject_is_explained() -> None:
    places = {"RowFault": 1, "Reject": 2, "_reject": 1}  # of the reason among the arguments
    calls = [(node.func.id, node.args) for node in trees() if isinstance(node, ast.Call) and is_named(node.func)]
    given = [arguments[places[name]] for name, arguments in calls if len(arguments) > places.get(name, len(arguments))]
    pages = [*(DOCS / "data").glob("*.md"), DOCS / "verbs" / "evaluate.md"]
    explained = "".join(page.read_text(encoding="utf-8") for page in pages)
    reasons = {spelled(reason) for reason in given} - {"…"}
    assert sorted(reason for reason in reasons if f"`{reason}`" not in explained) == []


def is_named(function: ast.expr) -> TypeGuard[ast.Name]:
    return isinstance(function, ast.Name)


def test_every_test_that_the_support_matrix_names_exists() -> None:
    matrix = architectures()  # raises LookupError for a test that does not exist
    assert all(f"`{kind}`" in matrix for kind in SUPPORTED_MODEL_TYPES)
    assert "| tested (1) |" in matrix


def test_a_bar_in_code_survives_in_a_table() -> None:
    assert cell("`--size tiny|paper`, or a|b") == "<code>--size tiny&#124;paper</code>, or a\\|b"


def test_every_verb_has_examples() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    groups = {name: getattr(command, "commands", {}) for name, command in commands.items()}
    verbs = [f"{name}-{inner}" if inner else name for name, inside in groups.items() for inner in inside or [""]]
    assert sorted(verbs) == sorted(page.stem for page in (DOCS / "verbs").glob("*.md") if page.stem != "index")
