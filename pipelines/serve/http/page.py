"""The page at `/`: one file without a build step, which loads nothing from elsewhere."""

import base64
import functools
import hashlib
import re
from pathlib import Path


@functools.cache
def page() -> tuple[str, dict[str, str]]:
    """Return the page and its headers. The page gets everything that it shows from the API.

    The content security policy allows only the page's own script, by its hash, so that an injected one does not run.
    """
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = " ".join(f"'sha256-{_base64_sha256(script)}'" for script in scripts)
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {hashes}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return text, headers


def _base64_sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
