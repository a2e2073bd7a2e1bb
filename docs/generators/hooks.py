"""MkDocs hooks: add the generated pages, replace markers, and fail the build if a public name has no description."""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from benchmarks.house import ROOT
from docs.generators import api_pages, config_pages, file_tree, http_page, support_matrix, verb_pages
from docs.generators.house.drawing import house
from docs.generators.public_names import undocumented

log = logging.getLogger("mkdocs.plugins.pft")  # MkDocs counts its warnings, and a strict build fails by them

DIAGRAMS = ROOT / "docs" / "diagrams"
FRAGMENTS: Mapping[str, Callable[[], str]] = {"house": house, "verbs": verb_pages.verb_table}
SECTIONS = {"verbs": verb_pages.pages, "api": api_pages.pages}  # that stand in the navigation in angle brackets
PAGES = (*SECTIONS.values(), config_pages.pages, file_tree.pages, http_page.pages, support_matrix.pages)
MARKER = re.compile(r"^<!-- (generated|diagram): (\S+) -->$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """Put the pages of generated sections into the navigation, in place of their names."""
    config.nav = [filled(entry) for entry in config.nav]
    return config


def filled(entry: Any) -> Any:
    """Return an entry of the navigation with its generated pages in place of names such as <verbs>."""
    if isinstance(entry, dict):
        return {title: filled(value) for title, value in entry.items()}
    if isinstance(entry, list):
        return [filled(each) for each in entry]
    section = SECTIONS.get(entry.strip("<>")) if entry.startswith("<") else None
    return list(section()) if section else entry


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and report every public name that nothing describes."""
    for pages in PAGES:
        for path, text in pages().items():
            if (written := files.get_file_from_path(path)) is not None:
                files.remove(written)  # the generated page holds it
            files.append(File.generated(config, path, content=text))
    for place in undocumented():
        log.warning("%s: a public name without a description: add a docstring, or a comment to a constant", place)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace the markers of a page by the parts and drawings that they name."""

    def replaced(match: re.Match[str]) -> str:
        kind, name = match.groups()
        if kind == "generated" and name in FRAGMENTS:
            return FRAGMENTS[name]()
        if kind == "diagram" and (DIAGRAMS / name).is_file():
            return inline(DIAGRAMS / name)
        log.warning("%s: %s: there is no such part", page.file.src_uri, match[0])
        return ""

    return MARKER.sub(replaced, markdown)


def inline(diagram: Path) -> str:
    """Return a drawing as a part of a page. Markdown would end it at an empty line."""
    lines = diagram.read_text(encoding="utf-8").splitlines()
    drawn = [line for line in lines if line.strip() and not line.startswith("<?xml")]
    return "\n".join(['<figure class="diagram">', *drawn, "</figure>"])
