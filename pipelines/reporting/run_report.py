"""The report files of a run: JSON and one self-contained page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pft_core.files import write_json, write_text
from pipelines.reporting.number_formats import number, p_value, seconds
from pipelines.reporting.pages import render_template
from pipelines.reporting.report_schema import REPORT_NAMES, RunReport
from pipelines.reporting.run_page import page_of
from pipelines.tracking import mask_credentials


def write_report(report: RunReport, folder: Path) -> tuple[Path, Path]:
    """Write report.json and report.html into a folder, with credentials masked; return their paths."""
    report = {**report, "config": without_credentials(report["config"])}
    folder.mkdir(parents=True, exist_ok=True)
    report_json, report_html = (folder / name for name in REPORT_NAMES)
    write_json(report_json, report, allow_nan=False)
    write_text(report_html, render(report))
    return report_json, report_html


def render(report: RunReport) -> str:
    """Return the page, which has no scripts, loads nothing, and escapes every text."""
    filters = {"number": number, "seconds": seconds, "p_value": p_value}
    return render_template("report.html.j2", page_of(report), filters=filters)


def without_credentials(content: Any) -> Any:
    """Copy JSON-like content and mask the credentials in its URIs."""
    if isinstance(content, Mapping):
        return {key: without_credentials(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_credentials(value) for value in content]
    return mask_credentials(content) if isinstance(content, str) else content
