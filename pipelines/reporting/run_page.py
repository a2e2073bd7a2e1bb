"""What the page of a run shows."""

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
    of_tasks,
    policy_cards,
    span,
    summary,
    warnings,
)
from pipelines.reporting.report_schema import RunReport
from pipelines.reporting.svg import inline_svg
from pipelines.tracking import StepMetrics, flatten

COLOURS = INK | {  # of the page and its drawings, where it is not dark; c0 to c4 are of policies
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
CURVE_COLOURS = {
    "loss_first": COLOURS["first"],
    "loss_second": COLOURS["second"],
    "val_loss_first": COLOURS["first"],
    "val_loss_second": COLOURS["second"],
    "val_loss": COLOURS["c0"],
}
SMALL_CURVES = {"grad_norm": "gradient norm", "lr": "learning rate", "pairs_per_s": "pairs per second"}


def page_of(report: RunReport) -> dict[str, Any]:
    """Everything that the template shows."""
    rows, timings = report["rows"], dict(report["timings"])
    total_s = timings.pop("total", None) or sum(timings.values())
    headline = headline_metric(rows)
    policies = policy_cards(rows, headline)
    cards = [card for card in policies if card.rows]
    colour = {card.policy: card.colour for card in policies}
    return {
        "title": report.get("title") or "Evaluation of " + ", ".join(card.policy for card in policies),
        "sentences": [*summary(cards, headline), *of_tasks(rows)],
        "warnings": [*report.get("cautions", []), *warnings(rows, report.get("items"))],
        "notes": report.get("notes", []),
        "cards": cards,
        "span": span,
        "colours": COLOURS,
        "colour": colour,
        "headline": METRICS[headline].label,
        "bars": [(named(m), panels) for m in leading_metrics() if (panels := bar_panels(rows, m, colour))],
        "training": [
            training_view(policy, steps, COLOURS[f"c{colour.get(policy, 0)}"])
            for policy, steps in report.get("training", {}).items()
            if steps
        ],
        "rows": rows,
        "examples": report.get("examples", []),
        "differences": report.get("differences", []),
        "compared": report.get("compared", []),
        "metrics": {name: named(name) for name in dict.fromkeys(row["metric"] for row in rows)},
        "timings": timings,
        "total_s": total_s,
        "config": flatten(report["config"]),
        "digests": flatten(report["digests"]),
    }


def named(metric: str) -> tuple[str, str]:
    """Return the label and meaning of a metric or task; of one that is not registered here, its name."""
    kinds: list[Registry[Metric] | Registry[Task]] = [METRICS, TASKS]
    said = next((kind[metric] for kind in kinds if metric in kind), None)
    return (said.label, said.meaning) if said else (metric, "")


def bar_panels(rows: Sequence[EvaluationRow], metric: str, colour: Mapping[str, int]) -> dict[str, Markup]:
    """Draw the bars of each axis; colour: the index of each policy's."""
    return {
        axis: inline_svg(
            bar_chart([bar_group(pole, found, colour) for pole, found in poles.items()]),
            f"{METRICS[metric].label} of every policy on {axis}",
            COLOURS,
        )
        for axis, poles in rows_by_pole(rows, metric).items()
    }


def bar_group(pole: str, rows: Sequence[EvaluationRow], colour: Mapping[str, int]) -> BarGroup:
    """Say what the bars of one pole are."""
    labels = short_apart([row["policy"] for row in rows])
    bars = [_bar(row, label, COLOURS[f"c{colour[row['policy']]}"]) for row, label in zip(rows, labels, strict=True)]
    return BarGroup(pole, f"n = {rows[0]['n']}", bars, rows[0]["position_baseline"])


def _bar(row: EvaluationRow, label: str, colour: str) -> Bar:
    value, low, high = (number(share, 3) for share in (row["value"], row["low"], row["high"]))
    place = f"{row['policy']}, {row['axis']} / {row['pole']}"
    return Bar(
        label,
        row["value"],
        row["low"],
        row["high"],
        number(row["value"]),
        f"{place}: {value}, 95 % interval {low} to {high}, n = {row['n']}",
        colour,
        is_pale=row["trained_pole"] is False,
    )


@dataclass(frozen=True)
class TrainingView:
    """The loss curves of a policy, and small ones of what else is worth a glance: (caption, drawing, last value)."""

    policy: str
    loss: Markup | None
    steps_per_point: int
    small: list[tuple[str, Markup, float]]


def curve_names(steps: Sequence[StepMetrics]) -> dict[str, str]:
    """Return the names and captions of the curves that can stand in one chart.

    The loss of a validation is a sum over both poles: it is left out where there are the means of each.
    """
    has_sides = any(name in step for step in steps for name in ("val_loss_first", "val_loss_second"))
    return {name: caption for name, caption in CURVE_NAMES.items() if not (has_sides and name == "val_loss")}


def training_view(policy: str, steps: Sequence[StepMetrics], colour: str) -> TrainingView:
    curves = [
        Curve(caption, CURVE_COLOURS.get(name, colour), points, is_pale=name.startswith("val_"))
        for name, caption in curve_names(steps).items()
        if (points := points_of(steps, name))
    ]
    loss = inline_svg(loss_chart(curves), f"Loss curves of {policy}", COLOURS) if curves else None
    small = [
        (caption, inline_svg(spark_line(points, colour), f"{caption} of {policy}", COLOURS), points[-1][1])
        for name, caption in SMALL_CURVES.items()
        if (points := points_of(steps, name))
    ]
    return TrainingView(policy, loss, steps_per_point(len(steps)), small)
