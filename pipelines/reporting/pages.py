"""Pages and other texts of a report: templates in, escaped text out, and each file whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

Row = Mapping[str, Any]  # a line of what a report shows, by the names of its columns
TEMPLATES = Path(__file__).parent / "templates"


def render_template(name: str, values: Mapping[str, Any], *, filters: Mapping[str, Any]) -> str:
    """Fill a template: every text escaped, a value that is missing an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name).render(values)


def write_whole(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
