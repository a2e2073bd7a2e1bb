"""The repository's files, a line each: from the docstrings of modules and rooms, and from FILES for the rest."""

import ast
import subprocess
from functools import cache
from pathlib import Path

from benchmarks.house import ROOT
from docs.generators.markdown import code, page, table
from docs.generators.source_text import first_sentence, parsed

# Lines for files without a docstring, and for folders whose contents are left out.
FILES = {
    ".ci/": "What continuous integration runs.",
    ".github/": "Hosted continuous integration, and templates for issues and pull requests.",
    ".gitattributes": "How Git treats files.",
    ".gitignore": "What Git leaves out.",
    ".pre-commit-config.yaml": "Checks before each commit.",
    "CHANGELOG.md": "What changed.",
    "CITATION.cff": "How to cite this project.",
    "CONTRIBUTING.md": "Set-up, tests, style, and how to add each kind of thing.",
    "LICENSE": "Apache-2.0.",
    "MANIFEST.in": "What the source archive holds beside the packages.",
    "Makefile": "Set-up, demo, tests, documentation.",
    "README.md": "What this is, and the first commands.",
    "SECURITY.md": "How to report a vulnerability.",
    "benchmarks/RESULTS.md": "What was measured, with the command behind every figure.",
    "constraints.txt": "The versions that are known to work together.",
    "docs/": "These pages: Markdown, drawings, and the code that generates the rest.",
    "examples/": "Own data, objective, metric and base model; serving clients; a notebook.",
    "mkdocs.yml": "The settings of this site.",
    "pft_core/data/dilemmas/": "The items of `dilemmas`, a file for each split.",
    "pft_core/data/spaces/": "Spaces of the shipped data sets: axes, poles, descriptions.",
    "pft_core/toyworld/base_model/": "The shipped tiny base model.",
    "pipelines/compare/sizes.yaml": "What a suite leaves out of its sizes.",
    "pipelines/compare/suites/": "The shipped suites.",
    "pipelines/export/card.md.j2": "The layout of a model card.",
    "pipelines/recipes/": "The shipped recipes, each number with its reason.",
    "pipelines/reporting/templates/": "The HTML of reports.",
    "pipelines/serve/http/page.html": "The page at `/`, in one file.",
    "pipelines/serve/recipes/": "The shipped serving recipes.",
    "pft_core/py.typed": "Marks that the package has types.",
    "pipelines/py.typed": "Marks that the package has types.",
    "cluster/py.typed": "Marks that the package has types.",
    "pyproject.toml": "Dependencies, the package, the settings of ruff, mypy and pytest.",
    "ray_cluster.yaml": "A cluster on AWS, for `ray up`.",
    "tests/": "Tests, room by room as the code.",
}


def pages() -> dict[str, str]:
    return {"files.md": files_page()}


def files_page() -> str:
    tops = list(dict.fromkeys(path.split("/")[0] for path in entries() if "/" in path))
    parts = [part for top in tops for part in (f"## `{top}`", line_of(f"{top}/"), files_below(f"{top}/"))]
    return page(
        "# Files",
        "A folder of `pft_core` and `pipelines` is a *room*: its `__init__` says what lives there and names everything "
        "that others may import from it.",
        "## Top",
        table(("File", "Contents"), [(code(path), line_of(path)) for path in entries() if "/" not in path]),
        *parts,
    )


def files_below(top: str) -> str:
    """Return the files below a folder, rooms in bold."""
    below = [path for path in entries() if path.startswith(top) and path != top]
    rows = [(code(path), f"**{line_of(path)}**" if path.endswith("/") else line_of(path)) for path in below]
    return table(("File", "Contents"), rows) if rows else ""


@cache
def entries() -> tuple[str, ...]:
    """Return the paths of files and folders in order, folders first and with a slash.

    The contents of a folder in FILES are left out.
    """
    paths: set[str] = set()
    for path in tracked():
        above = [f"{parent}/" for parent in reversed(Path(path).parents) if parent != Path(".")]
        summed_up = next((folder for folder in above if folder in FILES), None)
        shown = above[: above.index(summed_up) + 1] if summed_up else [*above, path]
        paths.update(each for each in shown if not each.endswith("__init__.py"))
    return tuple(sorted(paths, key=order))


def order(path: str) -> tuple[tuple[bool, str], ...]:
    """Return a sort key that puts folders before files, at every depth."""
    *folders, last = path.rstrip("/").split("/")
    return (*((False, folder) for folder in folders), (not path.endswith("/"), last))


def line_of(path: str) -> str:
    """Return the line about a path, from FILES or from its docstring; "" if there is none."""
    if path in FILES:
        return FILES[path]
    module = ROOT / path / "__init__.py" if path.endswith("/") else ROOT / path
    if module.suffix == ".py" and module.is_file():
        return first_line(ast.get_docstring(parsed(module)) or "")
    return ""


def first_line(docstring: str) -> str:
    """Return the first sentence of a docstring."""
    paragraph = first_sentence(docstring)
    ends = paragraph.find(". ")
    return paragraph if ends < 0 else paragraph[: ends + 1]


def tracked() -> list[str]:
    """Return the tracked and untracked files that Git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [path for path in found if (ROOT / path).exists()]
