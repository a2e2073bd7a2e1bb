"""Geometry of the report's charts: numbers in, positions in a drawing out; the template only places marks."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

Row = Mapping[str, Any]

LABEL_DISTANCE = 15.0
LABEL_LENGTH = 13  # characters that fit beside a bar
MAX_POINTS = 160  # per curve; more cannot be seen


@dataclass(frozen=True)
class Scale:
    """Maps values of [low, high] to positions of [start, end] in drawing units."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 1)


@dataclass(frozen=True)
class BarGroup:
    """The bars of one pole, each with its top edge, from `top` to `bottom`."""

    pole: str
    top: float
    bottom: float
    bars: list[tuple[float, Row]]


@dataclass(frozen=True)
class BarPanel:
    """One axis: a group of bars per pole over a common scale of 0 to 1."""

    axis: str
    groups: list[BarGroup]
    width: float
    height: float
    x: Scale


def bar_panels(rows: Iterable[Row], metric: str, *, width: float = 340.0, label_width: float = 88.0) -> list[BarPanel]:
    """Lay out one panel per axis for a metric that has poles; rows of other metrics are left out."""
    by_axis: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row["metric"] == metric and row["pole"] is not None:
            by_axis.setdefault(row["axis"], {}).setdefault(row["pole"], []).append(row)
    return [_bar_panel(axis, poles, width, label_width) for axis, poles in by_axis.items()]


def _bar_panel(axis: str, poles: Mapping[str, list[Row]], width: float, label_width: float) -> BarPanel:
    groups, y = [], 0.0
    for pole, rows in poles.items():
        top = y + 26  # the pole's name
        bars = [(top + 24 * i, row) for i, row in enumerate(rows)]
        bottom = top + 24 * len(rows)
        groups.append(BarGroup(pole, top, bottom, bars))
        y = bottom + 10
    return BarPanel(axis, groups, width, y + 18, Scale(0.0, 1.0, label_width, width - 44.0))


@dataclass(frozen=True)
class Curve:
    """One metric over the steps: its points as SVG polyline text, and its last value."""

    name: str
    points: str
    last: float
    last_y: float


@dataclass(frozen=True)
class CurvePanel:
    """Curves over a common pair of scales; y starts at 0. steps_per_point: steps averaged into one point."""

    curves: list[Curve]
    steps_per_point: int
    width: float
    height: float
    x: Scale
    y: Scale
    x_ticks: list[float] = field(default_factory=list)
    y_ticks: list[float] = field(default_factory=list)


def curve_panel(
    rows: Sequence[Row], names: Sequence[str], *, width: float = 460.0, height: float = 210.0, right: float = 96.0
) -> CurvePanel | None:
    """Lay out some metrics of a training run; None where no row has one of them."""
    series = {name: smoothed([(row["step"], row[name]) for row in rows if drawable(row, name)]) for name in names}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return None
    top = max(value for points in series.values() for _, value in points)
    last_step = max(row["step"] for row in rows)
    x_ticks, y_ticks = ticks(last_step), ticks(top)
    x = Scale(0.0, max(last_step, 1), 38.0, width - right)
    y = Scale(0.0, max(top, y_ticks[-1]), height - 24.0, 10.0)
    curves = [
        Curve(name, " ".join(f"{x(step)},{y(value)}" for step, value in points), points[-1][1], y(points[-1][1]))
        for name, points in series.items()
    ]
    return CurvePanel(apart(curves), math.ceil(len(rows) / MAX_POINTS), width, height, x, y, x_ticks, y_ticks)


def drawable(row: Row, name: str) -> bool:
    """Whether a row holds a number of this name."""
    return name in row and math.isfinite(row[name])


def smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Average runs of neighbours so that at most MAX_POINTS are left."""
    size = math.ceil(len(points) / MAX_POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), max(size, 1))]
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in parts]


def apart(curves: Iterable[Curve], *, distance: float = 15.0) -> list[Curve]:
    """Move the labels at the curves' ends apart, upwards, so that they can be read and stay off the x axis."""
    placed: list[Curve] = []
    for curve in sorted(curves, key=lambda c: -c.last_y):
        y = min([curve.last_y, *(p.last_y - distance for p in placed)])
        placed.append(Curve(curve.name, curve.points, curve.last, y))
    return placed


def ticks(high: float, *, at_most: int = 5) -> list[float]:
    """Round numbers from 0 up to `high`, a step of 1, 2 or 5 times a power of ten apart."""
    if high <= 0:
        return [0.0]
    power = 10.0 ** math.floor(math.log10(high / at_most))
    step = next(m * power for m in (1, 2, 5, 10, 20) if high / (m * power) <= at_most)
    return [round(i * step, 12) for i in range(math.floor(high / step) + 1)]


def short(text: str, length: int = LABEL_LENGTH) -> str:
    """Cut a label to what fits beside a bar."""
    return text if len(text) <= length else text[: length - 1] + "\u2026"


def ticks_between(low: float, high: float) -> list[float]:
    """Round numbers from at most `low` to at least `high`."""
    step = (ticks(high - low) or [0.0, 1.0])[1] if high > low else 0.1
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def labels_apart(ys: Sequence[float], *, bottom: float, distance: float = LABEL_DISTANCE) -> list[float]:
    """Move labels apart so that they can be read: down first, and back up from the bottom. Order is kept."""
    order = sorted(range(len(ys)), key=lambda i: ys[i])
    placed = list(ys)
    for above, i in pairwise(order):
        placed[i] = max(placed[i], placed[above] + distance)
    limit = bottom
    for i in reversed(order):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - distance
    return placed
