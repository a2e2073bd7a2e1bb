"""`compare --outcomes`: compare two evaluations of the same items, with paired tests."""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pft_core.errors import UserError
from pft_core.evaluation import METRICS, EvaluationRow
from pft_core.files import digest
from pipelines.compare.outcomes.differences import differences_of
from pipelines.compare.outcomes.evaluation import Evaluation, refuse_unlike
from pipelines.console import console
from pipelines.reporting import Difference, RunReport, p_value, write_report


def compare_evaluations(folders: Sequence[Path], *, storage: Path) -> dict[str, Any]:
    """Write the report of two evaluations and print its table. Result: report_json, report_html.

    Raises UserError if they are not of the same items.
    """
    if len(folders) != 2:
        raise UserError(f"--outcomes: expected two folders, got {len(folders)}: give --outcomes DIR DIR")
    started = time.perf_counter()
    a, b = (Evaluation.read(folder) for folder in folders)
    refuse_unlike(a, b)
    names = names_of(a, b)
    differences = differences_of(a, b)
    report = assemble((a, b), names, differences, seconds=time.perf_counter() - started)
    paths = write_report(report, folder_of(storage, (a, b), names))
    console.print(table_of(differences, names))
    return {name: str(path) for name, path in zip(("report_json", "report_html"), paths, strict=True)}


def assemble(
    both: tuple[Evaluation, Evaluation], names: tuple[str, str], differences: list[Difference], *, seconds: float
) -> RunReport:
    rows: list[EvaluationRow] = [
        {**row, "policy": name} for evaluation, name in zip(both, names, strict=True) for row in evaluation.rows
    ]
    cautions = [
        f"{name}: {caution}"
        for evaluation, name in zip(both, names, strict=True)
        for caution in evaluation.report.get("cautions", [])
    ]
    return {
        "title": f"{names[0]} and {names[1]} on the same items",
        "rows": rows,
        "differences": differences,
        "compared": list(names),
        "timings": {"compare": seconds},
        "config": {name: evaluation.report["config"] for evaluation, name in zip(both, names, strict=True)},
        "digests": {name: evaluation.report["digests"] for evaluation, name in zip(both, names, strict=True)},
        "cautions": cautions,
    }


def names_of(a: Evaluation, b: Evaluation) -> tuple[str, str]:
    """Return the policies' names, each with its folder if they are the same."""
    if a.policy != b.policy:
        return a.policy, b.policy
    if a.folder.resolve() == b.folder.resolve():
        raise UserError(f"--outcomes {a.folder} {b.folder}: both are the same evaluation: give two different ones")
    return f"{a.policy} ({a.folder})", f"{b.policy} ({b.folder})"


def folder_of(storage: Path, both: tuple[Evaluation, Evaluation], names: tuple[str, str]) -> Path:
    """Return a folder with a readable name that is unique to these two evaluations."""
    readable = re.sub(r"[^\w.-]+", "-", f"{names[0]}-{names[1]}").strip("-.")[:60]
    return (
        storage.resolve() / "compare" / "outcomes" / f"{readable}-{digest([str(e.folder.resolve()) for e in both])[:8]}"
    )


def table_of(differences: Sequence[Difference], names: tuple[str, str]) -> Table:
    """Make one row per metric and place, one column per policy, with 95% intervals; bold: p below 0.05 (Holm)."""
    table = Table(title="Side by side", caption="difference: first minus second; bold: corrected p is below 0.05")
    for heading in ("metric", "axis / pole", "n", *names, "difference", "p (Holm)"):
        table.add_column(Text(heading), justify="left" if heading in ("metric", "axis / pole") else "right")
    for row in differences:
        is_significant = row["p_holm"] is not None and row["p_holm"] < 0.05
        table.add_row(*(Text(text) for text in cells(row)), style="bold" if is_significant else "")
    return table


def cells(row: Difference) -> list[str]:
    label = METRICS[row["metric"]].label if row["metric"] in METRICS else row["metric"]
    low, high = row["low"], row["high"]
    interval = "" if low is None or high is None else f" ({low:+.2f} to {high:+.2f})"
    return [
        label,
        " / ".join(filter(None, (row["axis"] or "all", row["pole"]))),
        str(row["n"]),
        f"{row['a']:.2f}",
        f"{row['b']:.2f}",
        f"{row['difference']:+.2f}{interval}",
        "" if row["p_holm"] is None else p_value(row["p_holm"]),
    ]
