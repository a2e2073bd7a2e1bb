"""Geometry of a comparison's drawings: heat maps, means against what varies, learning curves; bars as in `charts`."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.compare.report.findings import YARDSTICKS, Comparison, value_of
from pipelines.reporting import (
    CURVE_NAMES,
    MAX_POINTS,
    BarPanel,
    Row,
    Scale,
    bar_panels,
    drawable,
    labels_apart,
    smoothed,
    ticks,
    ticks_between,
)

LOGARITHMIC_FROM = 8  # times that the largest value is the smallest


NUM_COLOURS = 8  # of lines; colour 0 is the reference's

NUM_DASHES = 3


def bars_of(view: Comparison, metric: str, variant: Any) -> list[BarPanel]:
    """A panel per axis, methods in order, yardsticks last."""
    rows = sorted(view.of_variant(variant), key=lambda row: row["method"] in YARDSTICKS)
    return bar_panels(rows, metric, width=360.0, label_width=136.0)


@dataclass(frozen=True)
class HeatMap:
    """A metric by method and axis; the last column is the mean over axes. A missing row is None."""

    metric: str
    axes: list[str]
    lines: list[tuple[str, list[Row | None]]]


def heat_map(view: Comparison, metric: str, variant: Any) -> HeatMap | None:
    """Lay out the rows over both poles of an axis; None where there are none."""
    rows = [row for row in view.of_variant(variant) if row["metric"] == metric and row["pole"] is None]
    axes = list(dict.fromkeys(row["axis"] for row in rows if row["axis"] is not None))
    present = {row["method"] for row in rows}
    order = [method for method in [*view.opponents, *view.yardsticks] if method in present]
    lines = [(m, [view.row(m, metric, axis, None, variant) for axis in [*axes, None]]) for m in order]
    return HeatMap(metric, axes, lines) if axes else None


@dataclass(frozen=True)
class Series:
    """One method's means as polyline text, its intervals as polygon text, and its marks (x, y, row)."""

    method: str
    points: str
    band: str
    marks: list[tuple[float, float, Row]]
    label_y: float


@dataclass(frozen=True)
class LinePanel:
    """Means over axes against a number that varies; x_ticks: (position, value)."""

    metric: str
    series: list[Series]
    width: float
    height: float
    x_ticks: list[tuple[float, Any]]
    y: Scale
    y_ticks: list[float]
    left: float
    right: float
    is_logarithmic: bool


def line_panel(view: Comparison, metric: str, *, width: float = 520.0, height: float = 300.0) -> LinePanel | None:
    """Lay out one metric; None where what varies is no number, has one value, or no row has an interval."""
    values = view.variants
    if len(values) < 2 or not all(isinstance(value, int | float) for value in values):
        return None
    rows = {
        method: [(v, row) for v in sorted(values) if (row := view.average(method, metric, v))]
        for method in [*view.opponents, *view.yardsticks]
    }
    rows = {method: found for method, found in rows.items() if found and found[0][1]["low"] is not None}
    if not rows:
        return None
    is_logarithmic = min(values) > 0 and max(values) / min(values) >= LOGARITHMIC_FROM
    place = math.log if is_logarithmic else float
    x = Scale(place(min(values)), place(max(values)), 42.0, width - 128.0)
    ends = [row[key] for found in rows.values() for _, row in found for key in ("low", "high")]
    y_ticks = ticks_between(min(ends), max(ends))
    y = Scale(y_ticks[0], y_ticks[-1], height - 26.0, 12.0)
    drawn = {m: [(x(place(value)), y(row["mean"]), row) for value, row in found] for m, found in rows.items()}
    labels = dict(zip(drawn, labels_apart([marks[-1][1] for marks in drawn.values()], bottom=y.start), strict=True))
    series = [Series(m, _line(marks), _band(marks, y), marks, labels[m]) for m, marks in drawn.items()]
    x_ticks = [(x(place(value)), value) for value in sorted(values)]
    return LinePanel(metric, series, width, height, x_ticks, y, y_ticks, x.start, x.end, is_logarithmic)


def _line(marks: Iterable[tuple[float, float, Row]]) -> str:
    return " ".join(f"{x},{y}" for x, y, _ in marks)


def _band(marks: Sequence[tuple[float, float, Row]], y: Scale) -> str:
    """The lower ends forwards, then the upper ends backwards."""
    lower = [f"{x},{y(row['low'])}" for x, _, row in marks]
    upper = [f"{x},{y(row['high'])}" for x, _, row in reversed(marks)]
    return " ".join(lower + upper)


@dataclass(frozen=True)
class LearningPanel:
    """The losses of one method: a line per seed and side, (curve name, points), and a label a side, (name, y)."""

    method: str
    lines: list[tuple[str, str]]
    labels: list[tuple[str, float]]
    num_seeds: int
    steps_per_point: int
    width: float
    height: float
    x: Scale
    y: Scale
    x_ticks: list[float]
    y_ticks: list[float]


def learning_panels(view: Comparison, variant: Any) -> list[LearningPanel]:
    """Lay out the curves of each method under one variant."""
    curves = [c for c in view.report["curves"] if value_of(c["variant"]) == variant]
    panels = [learning_panel(m, [c["steps"] for c in curves if c["method"] == m]) for m in view.methods]
    return [panel for panel in panels if panel]


def learning_panel(
    method: str, seeds: Sequence[Sequence[Row]], *, width: float = 360.0, height: float = 190.0
) -> LearningPanel | None:
    """Lay out one method's losses; None where no step has one. A total is drawn only where no side is."""
    found = [
        (name, points)
        for name in CURVE_NAMES
        for steps in seeds
        if (points := smoothed([(row["step"], row[name]) for row in steps if drawable(row, name)]))
    ]
    of_side = [(name, points) for name, points in found if name.startswith("loss_")]
    found = of_side or found
    if not found:
        return None
    top = max(value for _, points in found for _, value in points)
    last_step = max(step for _, points in found for step, _ in points)
    x_ticks, y_ticks = ticks(last_step), ticks(top)
    x = Scale(0.0, max(last_step, 1), 38.0, width - 84.0)
    y = Scale(0.0, max(top, y_ticks[-1]), height - 24.0, 10.0)
    lines = [(name, " ".join(f"{x(step)},{y(value)}" for step, value in points)) for name, points in found]
    ends = {name: y(_mean([points[-1][1] for n, points in found if n == name])) for name, _ in found}
    labels = list(zip(ends, labels_apart(list(ends.values()), bottom=y.start), strict=True))
    steps_per_point = math.ceil(max(len(steps) for steps in seeds) / MAX_POINTS)
    return LearningPanel(method, lines, labels, len(seeds), steps_per_point, width, height, x, y, x_ticks, y_ticks)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def line_styles(view: Comparison) -> dict[str, tuple[int, int]]:
    """A colour and a dash for the line of each method; the reference has the first colour, yardsticks are grey (-1)."""
    others = [method for method in view.opponents if method != view.reference]
    styles = {view.reference: (0, 0)}
    styles |= {m: (1 + i % (NUM_COLOURS - 1), i // (NUM_COLOURS - 1) % NUM_DASHES) for i, m in enumerate(others)}
    return styles | {method: (-1, 1 + i % 2) for i, method in enumerate(view.yardsticks)}
