"""Charts of a comparison: bars, means by variant, learning curves; and the rows of its heat maps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pft_core.evaluation import YARDSTICKS
from pipelines.compare.report.claims import Comparison, format_value, interval_of, method_label, position_mark, value_of
from pipelines.compare.statistics import ComparisonRow
from pipelines.reporting import (
    CURVE_NAMES,
    INK,
    Bar,
    BarGroup,
    Curve,
    bar_chart,
    blank_figure,
    chart_style,
    fit_ends,
    hint,
    loss_chart,
    points_of,
    rows_by_pole,
    short_apart,
    ticks,
)
from pipelines.tracking import StepMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE_COLORS = {  # l0 is for the reference
    "l0": "#0b6bcb",
    "l1": "#d9730d",
    "l2": "#128a5e",
    "l3": "#a2409c",
    "l4": "#b3261e",
    "l5": "#6b4de6",
    "l6": "#0a8f86",
    "l7": "#8a6d00",
}
COLORS = INK | LINE_COLORS | {"opponent": "#9db4cf", "yardstick": "#8b93a1"}  # of the page in light mode
CURVE_COLORS = {"loss_first": COLORS["l5"], "loss_second": COLORS["l6"]}
DASHES = ("-", (0, (7, 5)), (0, (2, 5)))  # pixels
LOGARITHMIC_FROM = 8  # ratio of the largest to the smallest value
LABEL_LENGTH = 18  # characters that fit beside a bar or at the end of a line
LABEL_HEIGHT = 15.0  # pixels


def role(view: Comparison, method: str) -> str:
    """Return how a method is drawn: the reference stands out, yardsticks stay in the background."""
    if method in YARDSTICKS:
        return "yardstick"
    return "reference" if method == view.reference else "opponent"


def labels_of(methods: Iterable[str]) -> list[str]:
    return short_apart([method_label(method) for method in methods], LABEL_LENGTH)


def bar_charts(view: Comparison, metric: str, variant: Any) -> "dict[str, Figure]":
    """Draw the bars of each axis, with methods in order and yardsticks last."""
    rows = sorted(view.of_variant(variant), key=lambda row: row["method"] in YARDSTICKS)
    return {
        axis: bar_chart(
            [_bar_group(view, pole, pole_rows) for pole, pole_rows in poles.items()], width=360.0, unit=100.0
        )
        for axis, poles in rows_by_pole(rows, metric).items()
    }


def _bar_group(view: Comparison, pole: str, rows: Sequence[ComparisonRow]) -> BarGroup:
    labels = labels_of([row["method"] for row in rows])
    bars = [_bar(row, label, role(view, row["method"])) for row, label in zip(rows, labels, strict=True)]
    return BarGroup(pole, f"n = {rows[0]['n_items']}", bars, rows[0]["position_baseline"])


def _bar(row: ComparisonRow, label: str, role: str) -> Bar:
    low, high = interval_of(row)
    return Bar(
        label,
        row["mean"],
        low,
        high,
        format_value(row["metric"], row["mean"]) + position_mark(row),
        f"{row['method']}, {row['axis']} / {row['pole']}: {_in_words(row)}, {row['n_items']} items, "
        f"{row['n_seeds']} seeds",
        COLORS["l0" if role == "reference" else role],
        label_color=COLORS["soft" if role == "yardstick" else "text"],
        label_weight=700 if role == "reference" else 400,
    )


def _in_words(row: ComparisonRow) -> str:
    value, low, high = (format_value(row["metric"], share) for share in (row["mean"], *interval_of(row)))
    return f"{value}, 95% interval {low} to {high}"


@dataclass(frozen=True)
class HeatMap:
    """A metric by method and axis; the last column is the mean over axes, and a missing row is None."""

    metric: str
    axes: list[str]
    lines: list[tuple[str, list[ComparisonRow | None]]]


def heat_map(view: Comparison, metric: str, variant: Any) -> HeatMap | None:
    """Arrange the rows over both poles of each axis for a table; None if there are none."""
    rows = [row for row in view.of_variant(variant) if row["metric"] == metric and row["pole"] is None]
    axes = list(dict.fromkeys(row["axis"] for row in rows if row["axis"] is not None))
    present = {row["method"] for row in rows}
    order = [method for method in [*view.opponents, *view.yardsticks] if method in present]
    lines = [(m, [view.row(m, metric, axis, None, variant) for axis in [*axes, None]]) for m in order]
    return HeatMap(metric, axes, lines) if axes else None


def is_logarithmic(view: Comparison) -> bool:
    """Return whether the variants are numbers with so wide a range that a logarithmic scale is used."""
    values = [value for value in view.variants if isinstance(value, int | float)]
    return len(values) > 1 and min(values) > 0 and max(values) / min(values) >= LOGARITHMIC_FROM


def rows_by_value(view: Comparison, metric: str) -> dict[str, list[ComparisonRow]]:
    """Return each method's means over axes by rising value of the variants; leave out methods without intervals.

    Empty if the variants are not numbers, or if there is only one.
    """
    values = view.variants
    if len(values) < 2 or not all(isinstance(value, int | float) for value in values):
        return {}
    series = {
        method: [row for value in sorted(values) if (row := view.average(method, metric, value))]
        for method in [*view.opponents, *view.yardsticks]
    }
    return {method: rows for method, rows in series.items() if rows and rows[0]["low"] is not None}


@chart_style()
def line_chart(view: Comparison, metric: str, *, width: float = 520.0, height: float = 300.0) -> "Figure | None":
    """Draw the means of one metric, in percent, by variant; None if there is nothing to draw."""
    series = rows_by_value(view, metric)
    if not series:
        return None
    figure, axes = blank_figure(width, max(height, LABEL_HEIGHT * len(series) + 50.0))
    _scales(axes, view, series)
    styles = line_styles(view)
    for method, rows in reversed(series.items()):
        _line(axes, view, rows, *styles[method])
    ends = zip(labels_of(series), series.items(), strict=True)
    fit_ends(axes, [(rows[-1]["mean"], label, _ink(styles[method][0])) for label, (method, rows) in ends])
    return figure


def _ink(color: str) -> str:
    """Return the color of a line's name; the gray of yardsticks is too light for text."""
    return COLORS["soft"] if color == COLORS["yardstick"] else color


def _scales(axes: "Axes", view: Comparison, series: Mapping[str, Sequence[ComparisonRow]]) -> None:
    values = sorted(view.variants)
    if is_logarithmic(view):
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set_xlim(values[0], values[-1])
    axes.set_xticks(values, [str(value) for value in values])
    ends = [end for rows in series.values() for row in rows for end in interval_of(row)]
    levels = ticks(min(ends), max(ends))
    axes.set_ylim(levels[0], levels[-1])
    axes.set_yticks(levels, [f"{100 * level:g}" for level in levels])
    axes.tick_params(pad=8)
    axes.grid(axis="y", color=INK["grid"], lw=1)


def _line(axes: "Axes", view: Comparison, rows: Sequence[ComparisonRow], color: str, dash: Any) -> None:
    xs = [value_of(row["variant"]) for row in rows]
    if color != COLORS["yardstick"]:
        ends = [*(interval_of(row)[0] for row in rows), *(interval_of(row)[1] for row in reversed(rows))]
        axes.fill([*xs, *reversed(xs)], ends, color=color, alpha=0.1, lw=0)
    axes.plot(xs, [row["mean"] for row in rows], color=color, ls=dash, lw=3 if color == COLORS["l0"] else 2)
    for x, row in zip(xs, rows, strict=True):
        (dot,) = axes.plot([x], [row["mean"]], "o", color=color, ms=6, mew=0)
        hint(dot, f"{row['method']}, {view.varies} {x}: {_in_words(row)}")


def line_styles(view: Comparison) -> dict[str, tuple[str, Any]]:
    """Return a color and a dash for each method's line; the reference has the first color, yardsticks are gray."""
    others = [method for method in view.opponents if method != view.reference]
    colors = list(LINE_COLORS.values())
    num = len(colors) - 1
    styles: dict[str, tuple[str, Any]] = {view.reference: (colors[0], DASHES[0])}
    styles |= {m: (colors[1 + i % num], DASHES[i // num % len(DASHES)]) for i, m in enumerate(others)}
    return styles | {m: (COLORS["yardstick"], DASHES[1 + i % 2]) for i, m in enumerate(view.yardsticks)}


def learning_curves(seeds: Sequence[Sequence[StepMetrics]]) -> list[Curve]:
    """Return the loss curves of one method, one per seed and side; the total only if there are no sides."""
    curves = [(name, points) for name in CURVE_NAMES for steps in seeds if (points := points_of(steps, name))]
    of_side = [(name, points) for name, points in curves if name.startswith("loss_")]
    return [
        Curve(CURVE_NAMES[name], CURVE_COLORS.get(name, COLORS["yardstick"]), points)
        for name, points in of_side or curves
    ]


def learning_chart(curves: Sequence[Curve]) -> "Figure":
    """Draw the loss curves of one method's seeds."""
    return loss_chart(curves, width=360.0, height=190.0, thin=True)
