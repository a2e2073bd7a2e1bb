"""A page per verb: usage, arguments and options from the command line itself, then the examples written for it."""

import re
from collections.abc import Iterator
from typing import Any

import typer

from benchmarks.house import ROOT
from docs.generators.markdown import code, page, paragraphs, table
from pipelines.cli import app

FOLDER = "verbs"
WRITTEN = ROOT / "docs" / FOLDER
DEFAULT = re.compile(r"Default(?: (for [^:]+))?: (.+)\.$")  # the last sentence of an option's help


def pages() -> dict[str, str]:
    """Return the pages by path, in the order of `pft --help`."""
    return {page_path(name): verb_page(name, command) for name, command in commands()}


def page_path(name: str) -> str:
    return f"{FOLDER}/{name.replace(' ', '-')}.md"


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every verb's name and click command; verbs of a group as "show config"."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]  # a group
        inner = getattr(command, "commands", None)
        yield from [(name, command)] if inner is None else ((f"{name} {each}", inner[each]) for each in inner)


def verb_page(name: str, command: Any) -> str:
    """Return the page of a verb. Its examples are those of docs/verbs, which begin with a heading of level 2."""
    context = command.context_class(command, info_name=f"pft {name}")
    usage = " ".join([f"pft {name}", *(argument_name(each) for each in given(command, "argument")), "[OPTION]..."])
    examples = WRITTEN / f"{name.replace(' ', '-')}.md"
    return page(
        f"# `pft {name}`",
        paragraphs(command.help or ""),
        f"```text\n{usage}\n```",
        parameters("Argument", context),
        parameters("Option", context),
        examples.read_text(encoding="utf-8") if examples.exists() else "",
    )


def parameters(kind: str, context: Any) -> str:
    """Return the table of arguments or options; empty if there are none."""
    shown = given(context.command, kind.lower())
    rows = [(shown_name(each, context), default(each), meaning(each)) for each in shown]
    return table((kind, "Default", "Meaning"), rows) if rows else ""


def given(command: Any, kind: str) -> list[Any]:
    return [each for each in command.params if each.param_type_name == kind]


def shown_name(parameter: Any, context: Any) -> str:
    """Return a parameter as `--help` shows it."""
    if parameter.param_type_name == "argument":
        return code(argument_name(parameter))
    return code(parameter.get_help_record(context)[0])


def argument_name(parameter: Any) -> str:
    """Return an argument in brackets if it may be left out."""
    name = str(parameter.metavar or parameter.name.upper())
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def default(parameter: Any) -> str:
    """Return what holds if a parameter is left out: its default, or what its help says."""
    if parameter.required:
        return "required"
    if (said := DEFAULT.search(parameter.help or "")) is not None:
        where, value = said.groups()
        return f"{where}: {value}" if where else value if " " in value else code(value)
    if getattr(parameter, "is_flag", False):
        return "off"
    return "" if parameter.default is None else code(parameter.default)


def meaning(parameter: Any) -> str:
    """Return a parameter's help without the default, which has a column of its own."""
    return DEFAULT.sub("", parameter.help or "").strip()


def verb_table() -> str:
    """Return the verbs with a link to the page of each, for other pages."""
    rows = [(f"[`pft {name}`]({page_path(name)})", (command.help or "").split("\n")[0]) for name, command in commands()]
    return table(("Verb", "What it does"), rows)
