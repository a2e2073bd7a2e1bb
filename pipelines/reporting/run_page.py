"""Contents of the page of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pft_core.evaluation import METRICS, TASKS, EvaluationRow, Metric, Task
from pft_core.registry import Registry
from pipelines.reporting.bars import Bar, BarGroup, bar_chart, rows_by_pole
from pipelines.reporting.curves import Curve, loss_chart, points_of, spark_line, steps_per_point
from pipelines.reporting.drawing import INK, short_apart
from pipelines.reporting.number_formats import number
from pipelines.reporting.policy_cards import (
    headline_metric,
    leading_metrics,
    policy_cards,
    span,
    summary,
    task_sentences,
    warnings,
)
from pipelines.reporting.report_schema import RunReport
from pipelines.reporting.svg import inline_svg
from pipelines.tracking import StepMetrics, flatten

COLORS = INK | {  # of the page and its drawings in light mode; c0 to c4 are for policies
    "c0": "#8b93a1",
    "c1": "#0b6bcb",
    "c2": "#d9730d",
    "c3": "#128a5e",
    "c4": "#a2409c",
    "first": "#6b4de6",
    "second": "#0a8f86",
}
# The metrics that are drawn as curves, and their names in the legend.
CURVE_NAMES = {
    "loss_first": "first pole",
    "loss_second": "second pole",
    "loss": "loss",
    "val_loss_first": "first, validation",
    "val_loss_second": "second, validation",
    "val_loss": "validation",
}
CURVE_COLORS = {
    "loss_first": COLORS["first"],
    "loss_second": COLORS["second"],
    "val_loss_first": COLORS["first"],
    "val_loss_second": COLORS["second"],
    "val_loss": COLORS["c0"],
}
SMALL_CURVES = {"grad_norm": "gradient norm", "lr": "learning rate", "pairs_per_s": "pairs per second"}


def page_of(report: RunReport) -> dict[str, Any]:
    """Return everything that the template shows."""
    rows, timings = report["rows"], dict(report["timings"])
    total_s = timings.pop("total", None) or sum(timings.values())
    headline = headline_metric(rows)
    policies = policy_cards(rows, headline)
    cards = [card for card in policies if card.rows]
    color = {card.policy: card.color for card in policies}
    return {
        "title": report.get("title") or "Evaluation of " + ", ".join(color),
        "sentences": [*summary(cards, headline), *task_sentences(rows)],
        "warnings": [*report.get("cautions", []), *warnings(rows, report.get("items"))],
        "notes": report.get("notes", []),
        "cards": cards,
        "span": span,
        "colors": COLORS,
        "color": color,
        "headline": METRICS[headline].label,
        "bars": [(label_and_meaning(m), panels) for m in leading_metrics() if (panels := bar_panels(rows, m, color))],
        "training": [
            training_view(policy, steps, COLORS[f"c{color.get(policy, 0)}"])
            for policy, steps in report.get("training", {}).items()
            if steps
        ],
        "rows": rows,
        "examples": report.get("examples", []),
        "differences": report.get("differences", []),
        "compared": report.get("compared", []),
        "metrics": {name: label_and_meaning(name) for name in dict.fromkeys(row["metric"] for row in rows)},
        "timings": timings,
        "total_s": total_s,
        "config": flatten(report["config"]),
        "digests": flatten(report["digests"]),
    }


def label_and_meaning(metric: str) -> tuple[str, str]:
    """Return the label and meaning of a metric or task, or just its name if it is not registered here."""
    kinds: list[Registry[Metric] | Registry[Task]] = [METRICS, TASKS]
    entry = next((kind[metric] for kind in kinds if metric in kind), None)
    return (entry.label, entry.meaning) if entry else (metric, "")


def bar_panels(rows: Sequence[EvaluationRow], metric: str, color: Mapping[str, int]) -> dict[str, Markup]:
    """Draw one panel of bars per axis; color: the color index of each policy."""
    return {
        axis: inline_svg(
            bar_chart([bar_group(pole, pole_rows, color) for pole, pole_rows in poles.items()]),
            f"{METRICS[metric].label} of every policy on {axis}",
            COLORS,
        )
        for axis, poles in rows_by_pole(rows, metric).items()
    }


def bar_group(pole: str, rows: Sequence[EvaluationRow], color: Mapping[str, int]) -> BarGroup:
    """Build the bars of one pole."""
    labels = short_apart([row["policy"] for row in rows])
    bars = [_bar(row, label, COLORS[f"c{color[row['policy']]}"]) for row, label in zip(rows, labels, strict=True)]
    return BarGroup(pole, f"n = {rows[0]['n']}", bars, rows[0]["position_baseline"])


def _bar(row: EvaluationRow, label: str, color: str) -> Bar:
    value, low, high = (number(share, 3) for share in (row["value"], row["low"], row["high"]))
    place = f"{row['policy']}, {row['axis']} / {row['pole']}"
    return Bar(
        label,
        row["value"],
        row["low"],
        row["high"],
        number(row["value"]),
        f"{place}: {value}, 95% interval {low} to {high}, n = {row['n']}",
        color,
        is_pale=row["trained_pole"] is False,
    )


@dataclass(frozen=True)
class TrainingView:
    """The loss chart of a policy, and small charts of other metrics as (caption, drawing, last value)."""

    policy: str
    loss: Markup | None
    steps_per_point: int
    small: list[tuple[str, Markup, float]]


def curve_names(steps: Sequence[StepMetrics]) -> dict[str, str]:
    """Return the names and captions of the curves that fit in one chart.

    The validation loss is a sum over both poles, so it is left out if the mean of each side is there.
    """
    has_sides = any(name in step for step in steps for name in ("val_loss_first", "val_loss_second"))
    return {name: caption for name, caption in CURVE_NAMES.items() if not (has_sides and name == "val_loss")}


def training_view(policy: str, steps: Sequence[StepMetrics], color: str) -> TrainingView:
    curves = [
        Curve(caption, CURVE_COLORS.get(name, color), points, is_pale=name.startswith("val_"))
        for name, caption in curve_names(steps).items()
        if (points := points_of(steps, name))
    ]
    loss = inline_svg(loss_chart(curves), f"Loss curves of {policy}", COLORS) if curves else None
    small = [
        (caption, inline_svg(spark_line(points, color), f"{caption} of {policy}", COLORS), points[-1][1])
        for name, caption in SMALL_CURVES.items()
        if (points := points_of(steps, name))
    ]
    return TrainingView(policy, loss, steps_per_point(len(steps)), small)
