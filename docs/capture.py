"""Screenshots by headless Chromium: the report and the served page of the real quickstart, or pages of the built site.

python -m docs.capture             docs/screenshots/report.png and served_page.png
python -m docs.capture PAGE...     each page at two widths, dark and light, in docs/screenshots/pages/
"""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from benchmarks.house import ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SHOTS = ROOT / "docs" / "screenshots"
RUN = "quickstart-real"
REPORT = ROOT / "runs" / RUN / "report.html"
WIDTHS, SCHEMES = (1280, 400), ("light", "dark")
COLORS = 128  # flat pages look the same, and a file has a third of the size
START_LIMIT_S = 300


def main(pages: list[str]) -> None:
    """Take the pictures that the arguments ask for."""
    with chromium() as browser:
        if pages:
            for name in pages:
                shoot_page(browser, name)
        else:
            shoot_quickstart(browser)


@contextmanager
def chromium() -> Iterator[Any]:
    """Run the browser that is installed on this machine."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        sys.exit(f"no browser: install one of {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


def shoot_page(browser: Any, name: str) -> None:
    """Take a page of the site at every width in every scheme."""
    source = ROOT / "site" / f"{name.removesuffix('.md')}.html"
    if not source.is_file():
        sys.exit(f"{source}: there is no such page: run `make docs`")
    for width in WIDTHS:
        for scheme in SCHEMES:
            target = SHOTS / "pages" / f"{name.replace('/', '-')}_{width}_{scheme}.png"
            with opened(browser, source.as_uri(), width, scheme) as page:
                page.screenshot(path=kept(target), full_page=True)


def shoot_quickstart(browser: Any) -> None:
    """Take the report of the real quickstart, which is run if it has not been, and the page of its server."""
    if not REPORT.is_file():
        subprocess.run([sys.executable, "-m", "pipelines.cli", "quickstart", "--real"], cwd=ROOT, check=True)
    with opened(browser, REPORT.as_uri(), 1280, "light") as page:
        page.screenshot(path=kept(SHOTS / "report.png"))
    reduce_colors(SHOTS / "report.png")
    with served() as url, opened(browser, url, 1280, "light") as page:
        expect(page.locator("#ask")).to_be_enabled(timeout=60_000)
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("#answers")).to_be_visible(timeout=60_000)
        page.screenshot(path=kept(SHOTS / "served_page.png"), full_page=True)
    reduce_colors(SHOTS / "served_page.png")


@contextmanager
def opened(browser: Any, url: str, width: int, scheme: str) -> Iterator[Any]:
    """Open an address in a window of that width, with fonts and drawings in place."""
    viewport = {"width": width, "height": 900}
    with browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce") as context:
        page = context.new_page()
        page.goto(url)
        page.wait_for_load_state("networkidle")
        yield page


@contextmanager
def served() -> Iterator[str]:
    """Serve the policy of the real quickstart on a free port until the block ends."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", RUN, "port=0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        try:
            yield address(server)
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=START_LIMIT_S)


def address(server: Any) -> str:
    """Return the address that a server prints when it answers."""
    for line in server.stderr:
        sys.stderr.write(line)
        if found := re.search(r"serving \S+ at (\S+)", line):
            return found[1]
    sys.exit("the server ended before it answered")


def kept(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def reduce_colors(path: Path) -> None:
    """Store a picture with a palette."""
    Image.open(path).convert("RGB").quantize(COLORS).save(path, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
