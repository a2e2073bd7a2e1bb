"""The report files of a search: JSON, one self-contained page, drawings and a table."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pft_core.evaluation import METRICS
from pft_core.files import write_json, write_text
from pipelines.reporting import inline_svg, render_template, seconds, svg_file, without_credentials
from pipelines.tracking import flatten
from pipelines.tune.drawings import (
    COLORS,
    HeatPanel,
    Tile,
    accuracy_chart,
    base_of,
    has_value,
    heat_map_chart,
    is_of,
    pareto_chart,
)
from pipelines.tune.search_formats import MISSING, brief, changes_text, interval, percent, points
from pipelines.tune.search_points import ratio_name
from pipelines.tune.search_schema import FIGURES, GridCell, PublishedSearch, SearchReport, TrialRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIONAL = ("changes", "rung_losses", "parents", "all_first")  # columns that only some searches have
DRAWINGS = {"heat_map": "heat_map.svg", "accuracy": "accuracy.svg", "pareto": "pareto.svg"}


def write_search(report: PublishedSearch, folder: Path) -> dict[str, Path]:
    """Write report.json, report.html, table.csv and the drawings that have data; return paths by name (report_json).

    Each file is written whole or not at all. A drawing of an earlier report that this one lacks is removed.
    Credentials in URIs are masked everywhere.
    """
    report = without_credentials(report)
    folder.mkdir(parents=True, exist_ok=True)
    drawings = drawings_of(report)
    texts = {"report.html": fill_page(page_of(report, drawings)), "table.csv": table_csv(report["trials"])}
    for name, file in DRAWINGS.items():
        if drawing := drawings.get(name):
            texts[file] = svg_file(*drawing, background=COLORS["card"])
        else:
            (folder / file).unlink(missing_ok=True)
    write_json(folder / "report.json", report, allow_nan=False)
    for name, text in texts.items():
        write_text(folder / name, text)
    return {name.replace(".", "_"): folder / name for name in ("report.json", *texts)}


def render(report: PublishedSearch) -> str:
    """Return the page, which has no scripts, loads nothing, and escapes every text."""
    return fill_page(page_of(report, drawings_of(report)))


def fill_page(page: Mapping[str, Any]) -> str:
    filters = {
        "brief": brief,
        "interval": interval,
        "percent": percent,
        "points": points,
        "ratio": ratio_name,
        "seconds": seconds,
    }
    return render_template("tune.html.j2", page, filters=filters)


def drawings_of(report: SearchReport) -> "dict[str, tuple[Figure, str]]":
    """Draw what has data; return figures by name, each with a label for screen readers."""
    trials, pick, names = report["trials"], report["pick"], metric_names(report)
    picked = trials[pick["trial"]] if pick else None
    panels = heat_tiles(report, picked)
    verifying = {line["trained"] for line in report["verification"]}
    marked = {"pick": pick["trial"] if pick else None, "knee": report["knee"]}
    figures = {
        "heat_map": (heat_map_chart(panels) if panels else None, "Heat map of alpha and beta"),
        "accuracy": (
            accuracy_chart(trials, names, picked=picked, aside=verifying),
            "Accuracy by the ratio of alpha to beta",
        ),
        "pareto": (
            pareto_chart(trials, report["front"], names, marked=marked),
            f"{names['pole_first']} against {names['pole_second']}",
        ),
    }
    return {name: (figure, label) for name, (figure, label) in figures.items() if figure}


def page_of(report: PublishedSearch, drawings: "Mapping[str, tuple[Figure, str]]") -> dict[str, Any]:
    """Return everything that the page shows."""
    trials, pick = report["trials"], report["pick"]
    picked = trials[pick["trial"]] if pick else None
    timings = {name: value for name, value in report["timings"].items() if value is not None}
    inline = {name: inline_svg(*drawing, colors=COLORS) for name, drawing in drawings.items()}
    return {
        **{name: inline.get(name) for name in DRAWINGS},
        "report": report,
        "colors": COLORS,
        "form": METRICS[report["form"]].label,
        "metric_names": metric_names(report),
        "picked": picked,
        "base": base_of(trials),
        "changes_text": changes_text,
        "has": {key: any(t.get(key) not in (None, [], {}) for t in trials) for key in OPTIONAL},
        "missing": MISSING,
        "total_s": timings.get("total") or sum(timings.values()),
        "timings": timings,
        "config": flatten(report["config"]),
        "digests": flatten(report["digests"]),
    }


def metric_names(report: SearchReport) -> dict[str, str]:
    """Return labels of the measured figures; with a single axis, the poles have their own names."""
    axes = report["axes"]
    first, second = (axes[0]["first"], axes[0]["second"]) if len(axes) == 1 else ("first pole", "second pole")
    return {
        "pole_first": first,
        "pole_second": second,
        "worse_pole": "worse pole",
        "both_right": "both right",
    }


def heat_panels(report: SearchReport) -> list[tuple[str, list[GridCell], list[float | None]]]:
    """Return (name, cells, values) for each panel: one per metric and combination of the other changes.

    A metric that no cell has is left out, unless it is the first. Optuna's ratios form no grid and have no panel.
    """
    if report["mode"] == "optuna":
        return []
    groups: dict[str, list[GridCell]] = {}
    for cell in report["cells"]:
        groups.setdefault(changes_text(cell["changes"]), []).append(cell)
    values = {name: [(cells, list(map(of, cells))) for cells in groups.values()] for name, of in heat_metrics(report)}
    shown = [n for i, n in enumerate(values) if not i or any(v is not None for _, vs in values[n] for v in vs)]
    return [
        (f"{name} (%), {changes}" if changes else f"{name} (%)", *values[name][i])
        for i, changes in enumerate(groups)
        for name in shown
    ]


def heat_metrics(report: SearchReport) -> list[tuple[str, Callable[[GridCell], float | None]]]:
    """Return the getter of each panel's value by its name; *One* and *All* are means of both poles."""
    of_poles = [(METRICS[report["form"]].label, lambda cell: mean_of(cell["pole_first"], cell["pole_second"]))]
    of_all = [(METRICS["all"].label, lambda cell: mean_of(cell["all_first"], cell["all_second"]))]
    of_pair = [(METRICS["both_right"].label, itemgetter("both_right"))]
    return [*of_poles, *(of_all * (report["form"] != "all")), ("Worse pole", itemgetter("worse_pole")), *of_pair]


def mean_of(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else (first + second) / 2


def heat_tiles(report: SearchReport, picked: TrialRow | None) -> list[HeatPanel]:
    """Build the panels with the tile of each cell."""
    return [
        HeatPanel(
            name,
            [_tile(name, cell, value, picked, report["trials"]) for cell, value in zip(cells, values, strict=True)],
        )
        for name, cells, values in heat_panels(report)
    ]


def _tile(panel: str, cell: GridCell, value: float | None, picked: TrialRow | None, trials: Sequence[TrialRow]) -> Tile:
    kind = kind_of(cell)
    place = f"alpha {brief(cell['alpha'])}, beta {brief(cell['beta'])} ({ratio_name(cell['t'])})"
    return Tile(
        cell["alpha"],
        cell["beta"],
        value,
        kind,
        mark_of(cell, trials=trials),
        f"{panel}, {place}, {kind.replace('_', ' ')}: {percent(value)}",
        is_of(cell, picked),
    )


def kind_of(cell: GridCell) -> str:
    """Return how a cell is drawn: its source, or its status if it has no value."""
    return cell["source"] if cell["status"] == "finished" else cell["status"]


def mark_of(cell: GridCell, *, trials: Sequence[TrialRow]) -> str:
    """Return the source of a cell's value; for a cell of the same ratio, the cell that was trained."""
    if kind_of(cell) != "same_ratio":
        return kind_of(cell)
    trial = trials[cell["trial"]]
    return f"= {brief(trial['alpha'])}:{brief(trial['beta'])}"


def table_csv(trials: Sequence[TrialRow]) -> str:
    """Write one row per trial with full digits; missing values are empty."""
    rows = [csv_row(i, trial) for i, trial in enumerate(trials)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def csv_row(index: int, trial: TrialRow) -> dict[str, Any]:
    """Flatten a trial: intervals as <metric>_low and <metric>_high, changes by dotted key, lists as JSON."""
    values: Mapping[str, Any] = trial
    row: dict[str, Any] = {"trial": index, "ratio": ratio_name(trial["t"])}
    row |= {key: values[key] for key in ("alpha", "beta", "t", "source", "status")}
    for metric in FIGURES:
        low, high = trial["intervals"][metric] if has_value(trial) else (None, None)
        row |= {metric: trial[metric], f"{metric}_low": low, f"{metric}_high": high}
    row |= {key: values[key] for key in ("all_first", "all_second", "steps", "seconds", "attempt")}
    row |= {f"changes.{name}": value for name, value in trial["changes"].items()}
    row |= {key: json.dumps(values[key]) for key in ("rung_losses", "parents", "weights") if values[key]}
    return row | {key: values[key] for key in ("run_id", "run_dir", "error")}
