"""The report files of a comparison: JSON, one self-contained page, and tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pft_core.evaluation import METRICS, metrics_where, pairs_first
from pft_core.files import write_json, write_text
from pipelines.compare.report.charts import (
    COLORS,
    HeatMap,
    bar_charts,
    heat_map,
    is_logarithmic,
    learning_chart,
    learning_curves,
    line_chart,
    role,
)
from pipelines.compare.report.claims import (
    MISSING,
    Comparison,
    against_position,
    failures,
    format_value,
    headline_sentences,
    is_significant,
    position_mark,
    run_name,
    value_of,
)
from pipelines.compare.report.comparison_schema import ComparisonReport
from pipelines.compare.report.latex import latex
from pipelines.compare.report.markdown import markdown
from pipelines.compare.report.tables import Table, across_variants, area, by_metric, by_pole
from pipelines.compare.statistics import ComparisonRow, CorrectedTest
from pipelines.reporting import (
    inline_svg,
    p_value,
    render_template,
    seconds,
    steps_per_point,
    without_credentials,
)
from pipelines.tracking import flatten

TEST_NAMES = {
    "paired_t": "paired t-test over seeds",
    "permutation": "sign flips over seeds",
    "mcnemar": "McNemar on items",
}


def write_comparison(report: ComparisonReport, folder: Path) -> dict[str, Path]:
    """Write report.json, report.html, tables.md and tables.tex into a folder, each whole or not at all.

    Credentials in URIs are masked everywhere, also in the errors of runs.
    """
    report = without_credentials(report)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report, allow_nan=False)
    texts = {"report.html": render(report), "tables.md": markdown(report), "tables.tex": latex(report)}
    for name, text in texts.items():
        write_text(folder / name, text)
    return {name.replace(".", "_"): folder / name for name in ("report.json", *texts)}


def render(report: ComparisonReport) -> str:
    """Return the page, which has no scripts, loads nothing, and escapes every text."""
    filters = {
        "seconds": seconds,
        "p_value": p_value,
        "mark": position_mark,
    }
    return render_template("compare.html.j2", page_of(Comparison(report)), filters=filters)


def page_of(view: Comparison) -> dict[str, Any]:
    """Return everything that the template shows."""
    report = view.report
    timings = dict(report["timings"])
    return {
        "report": report,
        "view": view,
        "sentences": headline_sentences(view),
        "warnings": warnings(view),
        "across": [t for t in (across_variants(view), area(view)) if not t.is_empty] if len(view.variants) > 1 else [],
        "lines": lines_of(view),
        "is_logarithmic": is_logarithmic(view),
        "colors": COLORS,
        "parts": [part_of(view, variant) for variant in view.variants],
        "tests": sorted(tests_of(view), key=lambda test: test.is_detail),
        "numbers": numbers_of(view),
        "runs": [(run, run_name(view, run)) for run in view.runs],
        "metrics": [(METRICS[metric].label, METRICS[metric].meaning) for metric in view.metrics],
        "names": {metric: METRICS[metric].label for metric in METRICS},
        "missing": MISSING,
        "format_value": format_value,
        "role": role,
        "total_s": timings.get("total") or sum(timings.values()),
        "timings": timings,
        "config": flatten(report["config"]),
        "digests": flatten(report["digests"]),
    }


def warnings(view: Comparison) -> list[str]:
    """List what a reader must know before trusting a number: trained test scenarios, failures, position effects."""
    messages = [*view.report.get("cautions", []), *failures(view)]
    for variant in view.variants:
        prefix = "" if variant is None else f"{view.varies} {variant}: "
        messages += [prefix + line for metric in view.right_metrics for line in against_position(view, metric, variant)]
    return messages


def line_metrics() -> list[str]:
    """List the metrics drawn by variant: shares of right answers, then metrics that request it."""
    right = metrics_where(is_right=True)
    return pairs_first(right) + [metric for metric in metrics_where(over_variants=True) if metric not in right]


def lines_of(view: Comparison) -> list[tuple[str, Markup]]:
    """Draw the means of each metric by variant, if possible."""
    figures = [(METRICS[m].label, figure) for m in line_metrics() if (figure := line_chart(view, m))]
    return [(name, inline_svg(figure, f"{name} of every method by {view.varies}", COLORS)) for name, figure in figures]


@dataclass(frozen=True)
class MethodCurves:
    """The learning curves of one method."""

    method: str
    num_seeds: int
    steps_per_point: int
    drawing: Markup


@dataclass(frozen=True)
class VariantSection:
    """The part of the page about one variant. bars: one drawing per axis."""

    variant: Any
    tables: list[Table]
    bars: list[tuple[str, dict[str, Markup]]]
    heat_maps: list[HeatMap]
    learning: list[MethodCurves]


def part_of(view: Comparison, variant: Any) -> VariantSection:
    tables = [by_pole(view, variant), by_metric(view, variant)]
    maps = [heat_map(view, metric, variant) for metric in pairs_first(metrics_where(is_right=True))]
    return VariantSection(
        variant,
        [table for table in tables if not table.is_empty],
        [
            (m, drawings)
            for m in metrics_where(is_right=True, has_poles=True)
            if (drawings := bars_of(view, m, variant))
        ],
        [heat for heat in maps if heat],
        [curves for method in view.methods if (curves := learning_of(view, method, variant))],
    )


def bars_of(view: Comparison, metric: str, variant: Any) -> dict[str, Markup]:
    return {
        axis: inline_svg(figure, f"{METRICS[metric].label} of every method on {axis}", COLORS)
        for axis, figure in bar_charts(view, metric, variant).items()
    }


def learning_of(view: Comparison, method: str, variant: Any) -> MethodCurves | None:
    curves = [c for c in view.report["curves"] if c["method"] == method and value_of(c["variant"]) == variant]
    seeds = [curve["steps"] for curve in curves]
    lines = learning_curves(seeds)
    if not lines:
        return None
    drawing = inline_svg(learning_chart(lines), f"Loss curves of {method}", COLORS)
    return MethodCurves(method, len(seeds), steps_per_point(max(map(len, seeds))), drawing)


@dataclass(frozen=True)
class Verdict:
    """A test with its verdict. is_detail: it is on a single axis, not on the mean over axes."""

    test: CorrectedTest
    kind: str
    variant: Any
    is_significant: bool
    is_detail: bool


def tests_of(view: Comparison) -> list[Verdict]:
    return [
        Verdict(
            test,
            TEST_NAMES.get(test["test"], test["test"]),
            value_of(test["variant"]),
            is_significant(test),
            test["axis"] is not None,
        )
        for test in view.report["tests"]
    ]


@dataclass(frozen=True)
class NumberLine:
    """A row with the indices, in the list of runs, of the runs behind it."""

    row: ComparisonRow
    variant: Any
    runs: list[int]


def numbers_of(view: Comparison) -> list[NumberLine]:
    places = {run["run_id"]: number for number, run in reversed(list(enumerate(view.runs)))}
    return [
        NumberLine(row, value_of(row["variant"]), [places[run] for run in row["run_ids"] if run in places])
        for row in view.rows
    ]
