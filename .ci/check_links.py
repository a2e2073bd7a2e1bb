"""Check that every relative link of the Markdown files names a file and a heading that exist: `.ci/check_links.py`.

Addresses on the web are not opened: the check needs no network.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def main() -> int:
    found = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True)
    files = [ROOT / name for name in found.stdout.decode().splitlines()]
    faults = [fault for file in files for fault in dead_links(file)]
    print("\n".join(faults) or f"{len(files)} Markdown files: every relative link leads somewhere")
    return len(faults) > 0


def dead_links(file: Path) -> list[str]:
    text = CODE.sub("", file.read_text(encoding="utf-8"))
    return [
        f"{file.relative_to(ROOT)}: {target}: {fault}"
        for target in LINK.findall(text)
        if not re.match(r"[a-z]+:", target) and (fault := fault_of(file, target))
    ]


def fault_of(file: Path, target: str) -> str | None:
    path, _, heading = target.partition("#")
    place = file.parent / path if path else file
    if not place.exists():
        return "no such file"
    if heading and place.suffix == ".md" and heading not in anchors(place):
        return "no such heading"
    return None


def anchors(file: Path) -> set[str]:
    """Return the anchors of a file's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.+?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


if __name__ == "__main__":
    sys.exit(main())
