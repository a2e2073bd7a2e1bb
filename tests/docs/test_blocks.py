"""Marked blocks of README.md and docs/ run as printed, page by page, each page in an empty folder.

A marker stands alone on the line before a fenced block:

    <!-- run -->          bash, python and javascript are run; a block with title="NAME" is written to NAME
    <!-- run: slow -->    the same, by `make test-all` only: the whole page is
    <!-- run: served -->  a server with a tiny policy stands in for http://127.0.0.1:8000
    <!-- run: if-NAME --> run if the package NAME is installed (Node's for javascript); otherwise it says so
    <!-- run: fails -->   the block ends with an error
    <!-- file: NAME -->   the block is written to NAME
    <!-- output -->       each line was printed by the block that ran last; `...` stands for any text
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pft_core.data.preferences import load_space
from tests.docs.blocks import ROOT, Block, marked_blocks, missing_packages, refuse_missing_lines, run_block, run_page
from tests.serving import LocalServer, serve_config, write_policy

PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if marked_blocks(page)]


def marks(blocks: list[Block]) -> list[pytest.MarkDecorator]:
    """Return the marks of a page: it may start a Ray of its own, and runs whole, or not at all."""
    names = ["slow"] if any("slow" in block.options for block in blocks) else []
    names += ["ray", "own_ray"] if any(re.search(r"\bpft (?!show|key)", block.text) for block in blocks) else []
    return [getattr(pytest.mark, name) for name in names]


@pytest.fixture(scope="module")
def address(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of a server, for the pages that ask one."""
    root = tmp_path_factory.mktemp("served")
    policy = write_policy(root / "policy", tiny_qwen2, seed=0, space=load_space("toyworld"))
    with LocalServer(serve_config(policy, root / "cache")).running() as server:
        yield server.url.removeprefix("http://")


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks(marked_blocks(page))) for page in PAGES]
)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    is_served = any("served" in block.options for block in marked_blocks(page))
    run_page(page, tmp_path, **({"server": request.getfixturevalue("address")} if is_served else {}))


def test_markers_are_read_outside_of_blocks_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('````text\n<!-- run -->\n````\n<!-- run -->\n```json title="a.json"\n{}\n```\n')
    assert marked_blocks(page) == [Block(5, "json", "{}\n", "a.json")]


def test_a_marker_before_no_block_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- run -->\n\n```bash\ntrue\n```\n")
    with pytest.raises(ValueError, match=r"page.md:1: <!-- run --> stands before no fenced block"):
        marked_blocks(page)


def test_a_block_whose_package_is_missing_is_not_run(tmp_path: Path) -> None:
    block = "```bash\necho ran > {}\n```\n"
    text = "<!-- run: if-pytest -->\n" + block.format("a") + "<!-- run: if-no-such-package -->\n" + block.format("b")
    (tmp_path / "page.md").write_text(text)
    there, missing = marked_blocks(tmp_path / "page.md")
    assert missing_packages(there, tmp_path) == []
    assert missing_packages(missing, tmp_path) == ["no-such-package"]
    node = Block(1, "javascript", "", options=frozenset({"if-no-such-package"}))
    assert missing_packages(node, tmp_path) == ["no-such-package"]


def test_a_block_that_fails_shows_its_output(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"page.md:1 ended with 3(.|\n)*no such thing"):
        run_block("page.md:1", Block(1, "bash", ""), "echo no such thing; exit 3", tmp_path)


def test_expected_lines_are_looked_for(tmp_path: Path) -> None:
    refuse_missing_lines("page.md:1", "ends ... here\n", "it ends with a word here")
    with pytest.raises(AssertionError, match="'elsewhere' was not printed"):
        refuse_missing_lines("page.md:1", "elsewhere\n", "it ends here")
