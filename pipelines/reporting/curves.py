"""Line charts of training metrics: losses by step, and sparklines of other metrics."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.reporting.drawing import INK, blank_figure, chart_style, fit_ends, ticks
from pipelines.tracking import StepMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 160  # per curve; more cannot be told apart
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """One line of (step, loss) points; lines with one name share a label. is_pale: for validation."""

    name: str
    color: str
    points: Points
    is_pale: bool = False


@chart_style()
def loss_chart(curves: Sequence[Curve], *, width: float = 460.0, height: float = 210.0, thin: bool = False) -> "Figure":
    """Draw losses by step, with both axes starting at 0 and each line labeled at its end."""
    assert curves, "a chart without a curve shows nothing: leave it out"
    figure, axes = blank_figure(width, height)
    last_step = max(step for curve in curves for step, _ in curve.points)
    losses = [value for curve in curves for _, value in curve.points]
    low, high = min(0.0, *losses), max(0.0, *losses)
    axes.set(xlim=(0.0, max(last_step, 1.0)), ylim=(low, high if high > low else 1.0))
    _scale(axes, last_step, low, high)
    width_px, solid = (1.3, 0.7) if thin else (2.0, 1.0)
    for curve in curves:
        _line(axes, curve.points, color=curve.color, lw=width_px, alpha=0.45 if curve.is_pale else solid)
    fit_ends(axes, _ends(curves))
    return figure


def _line(axes: "Axes", points: Points, **style: Any) -> None:
    """Draw a line, or a dot for a single point, which a line would not show."""
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, marker="o" if len(points) == 1 else "", ms=5.0, mew=0.0, **style)


def _scale(axes: "Axes", last_step: float, low: float, high: float) -> None:
    steps = [tick for tick in ticks(0.0, last_step) if tick <= last_step]
    losses = [tick for tick in ticks(low, high) if low <= tick <= high]
    axes.set_xticks(steps, [f"{tick:g}" for tick in steps])
    axes.set_yticks(losses, [f"{tick:g}" for tick in losses])
    axes.tick_params(pad=6)
    axes.grid(axis="y", color=INK["grid"], lw=1)


def _ends(curves: Sequence[Curve]) -> list[tuple[float, str, str]]:
    """Return the mean last loss, name and color of the lines of each name."""
    last: dict[tuple[str, str], list[float]] = {}
    for curve in curves:
        last.setdefault((curve.name, curve.color), []).append(curve.points[-1][1])
    return [(sum(ends) / len(ends), name, color) for (name, color), ends in last.items()]


@chart_style()
def spark_line(points: Points, color: str, *, width: float = 114.0, height: float = 38.0) -> "Figure":
    """Draw one small line from 0, without a scale."""
    assert points, "a line without a point shows nothing: leave it out"
    figure, axes = blank_figure(width, height)
    steps, values = zip(*points, strict=True)
    axes.set(xlim=(0.0, max(*steps, 1.0)), ylim=(min(0.0, *values), max(*values, 0.0) or 1.0), xticks=[], yticks=[])
    _line(axes, points, color=color, lw=2.0)
    axes.set_position((0.01, 0.1, 0.98, 0.75))
    return figure


def points_of(steps: Sequence[StepMetrics], name: str) -> list[tuple[float, float]]:
    """Return (step, value) points of one training metric, averaged if there are many."""
    return averaged_points([(step["step"], step[name]) for step in steps if name in step and math.isfinite(step[name])])


def averaged_points(points: Points) -> list[tuple[float, float]]:
    """Average consecutive points so that at most MAX_POINTS are left."""
    size = steps_per_point(len(points))
    parts = [points[i : i + size] for i in range(0, len(points), max(size, 1))]
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in parts]


def steps_per_point(count: int) -> int:
    """Return how many of `count` steps are averaged into one point."""
    return math.ceil(count / MAX_POINTS)
