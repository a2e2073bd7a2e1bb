"""Every relative link of the Markdown files leads to a file and a heading that exist."""

import subprocess
import sys

from benchmarks.house import ROOT


def test_no_link_between_markdown_files_is_dead() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "check_links.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
