"""What a page names exists: the targets of its links, and the files of the repository that it writes about."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

WRITTEN = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
PAGES = [page for page in sorted(WRITTEN) if page.name != "CHANGELOG.md"]  # which tells of files that are gone
# Of docs/, what the build makes: it checks links to that itself.
GENERATED = {"api", "configuration.md", "files.md", "http-api.md", "recipes.md", "support-matrix.md"}
LINK = re.compile(r"\]\((?!\w+:|#|<)([^)\s#]+)")
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
TOP = {name.split("/")[0] for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_of_a_page_exist(page: Path) -> None:
    text = without_blocks(page.read_text(encoding="utf-8"))
    missing = [link for link in LINK.findall(text) if not is_there(page.parent / link)]
    missing += [path for code in CODE.findall(text) if (path := repository_path(code)) and not is_in_repository(path)]
    assert not missing


def without_blocks(text: str) -> str:
    return re.sub(r"^\s*(`{3,}).*?^\s*\1\s*$", "", text, flags=re.DOTALL | re.MULTILINE)


def is_there(target: Path) -> bool:
    docs, target = ROOT / "docs", target.resolve()
    is_generated = target.is_relative_to(docs) and target.relative_to(docs).parts[0] in GENERATED
    return is_generated or target.exists()


def is_in_repository(path: str) -> bool:
    """Whether a path exists, from the top or from tests/, which mirrors it."""
    return any(ROOT.glob(path)) or any((ROOT / "tests").glob(path))


def repository_path(code: str) -> str:
    """Return the path that a piece of code is, without a line number; empty if it is none of this repository."""
    path = re.sub(r"(:\d+)?/?$", "", code)
    looks_so = re.fullmatch(r"[\w.*-]+(/[\w.*-]+)+", path) is not None
    return path if looks_so and path.split("/")[0] in TOP else ""
