"""Blocks of Markdown pages that are run as printed: how they are marked, found and run."""

import importlib.metadata
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MARKER = re.compile(r"^\s*<!-- (?P<kind>run|file|output)(?:: (?P<said>.+?))? -->$")
FENCE = re.compile(r"^(?P<indent>\s*)(?P<fence>`{3,})(?P<language>\w*)(?P<rest>.*)$")
TITLE = re.compile(r'title="([^"]+)"')
OPTIONS = {"slow", "served", "fails"}
IF = "if-"
ADDRESS = re.compile(r"(?:127\.0\.0\.1|localhost):8000")
# What a reader's shell does not hold, and what would lead a block to somebody's cluster or server.
FOREIGN = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "PFT_DATA", "PFT_API_KEY")


@dataclass(frozen=True)
class Block:
    """A marked block. file: where it is written; options: what its marker adds to `run`; expects: it is output."""

    line: int
    language: str
    text: str
    file: str | None = None
    options: frozenset[str] = frozenset()
    expects: bool = False


def marked_blocks(page: Path) -> list[Block]:
    """Return the marked blocks of a page, in order. Raises ValueError for a marker that stands before no block."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [block_at(page, lines, i, marker) for i, marker in markers(lines)]


def markers(lines: list[str]) -> Iterator[tuple[int, re.Match[str]]]:
    """Yield the markers outside of blocks."""
    closing = ""
    for i, line in enumerate(lines):
        if closing:
            closing = "" if line.strip() == closing else closing
        elif fence := FENCE.match(line):
            closing = fence["fence"]
        elif marker := MARKER.match(line):
            yield i, marker


def block_at(page: Path, lines: list[str], at: int, marker: re.Match[str]) -> Block:
    """Return the block below a marker."""
    place = f"{page.name}:{at + 1}: {lines[at].strip()}"
    fence = FENCE.match(lines[at + 1]) if at + 1 < len(lines) else None
    if fence is None:
        raise ValueError(f"{place} stands before no fenced block")
    ends = next(i for i in range(at + 2, len(lines)) if lines[i].strip() == fence["fence"])
    said = set(re.split(r"[,\s]+", marker["said"])) if marker["kind"] == "run" and marker["said"] else set()
    if {option for option in said if not option.startswith(IF)} - OPTIONS:
        raise ValueError(f"{place}: options are {', '.join(sorted(OPTIONS))} and {IF}PACKAGE")
    title = TITLE.search(fence["rest"])
    file = marker["said"] if marker["kind"] == "file" else title and title[1]
    text = textwrap.dedent("\n".join(lines[at + 2 : ends])) + "\n"
    return Block(at + 2, fence["language"], text, file, frozenset(said), marker["kind"] == "output")


def run_page(page: Path, folder: Path, *, server: str = "127.0.0.1:8000") -> None:
    """Write and run the marked blocks of a page in a folder. server: what stands in place of the printed address."""
    printed = ""
    for block in marked_blocks(page):
        place = f"{page.relative_to(ROOT)}:{block.line}"
        text = ADDRESS.sub(server, block.text)
        if block.expects:
            refuse_missing_lines(place, text, printed)
        elif missing := missing_packages(block, folder):
            print(f"{place}: not run, because {', '.join(missing)} is not installed")
        elif block.file is not None:
            target = folder / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        else:
            printed = run_block(place, block, text, folder)


def missing_packages(block: Block, folder: Path) -> list[str]:
    """Return the packages that a block needs and this machine lacks: Node's for JavaScript, otherwise Python's."""
    names = [option.removeprefix(IF) for option in sorted(block.options) if option.startswith(IF)]
    is_there = has_node_package if block.language == "javascript" else has_python_package
    return [name for name in names if not is_there(name, folder)]


def has_node_package(name: str, folder: Path) -> bool:
    code = f"import({name!r}).catch(() => process.exit(1))"
    return subprocess.run(["node", "-e", code], cwd=folder, capture_output=True, check=False).returncode == 0


def has_python_package(name: str, _: Path) -> bool:
    return any(importlib.metadata.distributions(name=name))


def run_block(place: str, block: Block, text: str, folder: Path) -> str:
    """Run a block; return what it prints, stderr after stdout. Fails with its output unless it ends as it should."""
    commands: dict[str, list[str]] = {
        "bash": ["bash", "-euo", "pipefail", "-c", text],
        "python": [sys.executable, "-c", text],
        "javascript": ["node", "--input-type=module", "-e", text],
    }
    assert block.language in commands, f"{place}: {block.language!r} cannot be run: {', '.join(commands)} can"
    started = time.perf_counter()
    done = subprocess.run(
        commands[block.language],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
    )
    print(f"{place}: {time.perf_counter() - started:.1f} s")
    as_it_should = (done.returncode != 0) == ("fails" in block.options)
    assert as_it_should, f"{place} ended with {done.returncode}\n{text}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout + done.stderr


def refuse_missing_lines(place: str, expected: str, printed: str) -> None:
    """Fail unless every line was printed. `...` stands for any text."""
    for line in filter(str.strip, expected.splitlines()):
        pattern = ".*".join(re.escape(part) for part in line.strip().split("..."))
        assert re.search(pattern, printed), f"{place}: {line.strip()!r} was not printed:\n{printed[-8000:]}"


def environment() -> dict[str, str]:
    """Return the variables that a block sees: those of the tests, without what points elsewhere."""
    return {name: value for name, value in os.environ.items() if name not in FOREIGN} | {"NO_COLOR": "1"}
