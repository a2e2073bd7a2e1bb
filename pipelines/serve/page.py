"""The page at `/`: one file, no build step, nothing loaded from elsewhere."""

from pipelines.pages import TEMPLATES

PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def page() -> str:
    """Return the page; it asks the API for everything that it shows."""
    return (TEMPLATES / "serve.html").read_text(encoding="utf-8")
