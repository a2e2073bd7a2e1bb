"""A comparison's charts: bars, means against what varies, learning curves; and the rows of its heat maps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pft_core.evaluation import YARDSTICKS
from pipelines.compare.report.claims import Comparison, interval_of, method_label, position_mark, shown, value_of
from pipelines.compare.statistics import ComparisonRow
from pipelines.reporting import (
    CURVE_NAMES,
    INK,
    Bar,
    BarGroup,
    Curve,
    bar_chart,
    blank,
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

LINE_COLOURS = {  # l0 is the reference's
    "l0": "#0b6bcb",
    "l1": "#d9730d",
    "l2": "#128a5e",
    "l3": "#a2409c",
    "l4": "#b3261e",
    "l5": "#6b4de6",
    "l6": "#0a8f86",
    "l7": "#8a6d00",
}
COLOURS = INK | LINE_COLOURS | {"opponent": "#9db4cf", "yardstick": "#8b93a1"}  # of the page where it is not dark
CURVE_COLOURS = {"loss_first": COLOURS["l5"], "loss_second": COLOURS["l6"]}
DASHES = ("-", (0, (7, 5)), (0, (2, 5)))  # pixels
LOGARITHMIC_FROM = 8  # times that the largest value is the smallest
LABEL_LENGTH = 18  # characters that fit beside a bar, or at the end of a line
LABEL_HEIGHT = 15.0  # pixels


def role(view: Comparison, method: str) -> str:
    """What a method is drawn as: the reference stands out, yardsticks stand back."""
    if method in YARDSTICKS:
        return "yardstick"
    return "reference" if method == view.reference else "opponent"


def labels_of(methods: Iterable[str]) -> list[str]:
    return short_apart([method_label(method) for method in methods], LABEL_LENGTH)


def bar_charts(view: Comparison, metric: str, variant: Any) -> "dict[str, Figure]":
    """Draw the bars of each axis, methods in order, yardsticks last."""
    rows = sorted(view.of_variant(variant), key=lambda row: row["method"] in YARDSTICKS)
    return {
        axis: bar_chart([_bar_group(view, pole, found) for pole, found in poles.items()], width=360.0, unit=100.0)
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
        shown(row["metric"], row["mean"]) + position_mark(row),
        f"{row['method']}, {row['axis']} / {row['pole']}: {_in_words(row)}, {row['n_items']} items, "
        f"{row['n_seeds']} seeds",
        COLOURS["l0" if role == "reference" else role],
        label_colour=COLOURS["soft" if role == "yardstick" else "text"],
        label_weight=700 if role == "reference" else 400,
    )


def _in_words(row: ComparisonRow) -> str:
    value, low, high = (shown(row["metric"], share) for share in (row["mean"], *interval_of(row)))
    return f"{value}, 95 % interval {low} to {high}"


@dataclass(frozen=True)
class HeatMap:
    """A metric by method and axis; the last column is the mean over axes. A missing row is None."""

    metric: str
    axes: list[str]
    lines: list[tuple[str, list[ComparisonRow | None]]]


def heat_map(view: Comparison, metric: str, variant: Any) -> HeatMap | None:
    """Sort the rows over both poles of an axis for a table; None where there are none."""
    rows = [row for row in view.of_variant(variant) if row["metric"] == metric and row["pole"] is None]
    axes = list(dict.fromkeys(row["axis"] for row in rows if row["axis"] is not None))
    present = {row["method"] for row in rows}
    order = [method for method in [*view.opponents, *view.yardsticks] if method in present]
    lines = [(m, [view.row(m, metric, axis, None, variant) for axis in [*axes, None]]) for m in order]
    return HeatMap(metric, axes, lines) if axes else None


def is_logarithmic(view: Comparison) -> bool:
    """Whether what varies is a number that spans so much that its logarithm is drawn."""
    values = [value for value in view.variants if isinstance(value, int | float)]
    return len(values) > 1 and min(values) > 0 and max(values) / min(values) >= LOGARITHMIC_FROM


def rows_by_value(view: Comparison, metric: str) -> dict[str, list[ComparisonRow]]:
    """Return each method's means over axes by rising value of what varies.

    Empty where that is no number or has one value; methods without intervals are left out.
    """
    values = view.variants
    if len(values) < 2 or not all(isinstance(value, int | float) for value in values):
        return {}
    found = {
        method: [row for value in sorted(values) if (row := view.average(method, metric, value))]
        for method in [*view.opponents, *view.yardsticks]
    }
    return {method: rows for method, rows in found.items() if rows and rows[0]["low"] is not None}


@chart_style()
def line_chart(view: Comparison, metric: str, *, width: float = 520.0, height: float = 300.0) -> "Figure | None":
    """Draw the means of one metric, in percent, against what varies; None where there is nothing to draw."""
    series = rows_by_value(view, metric)
    if not series:
        return None
    figure, axes = blank(width, max(height, LABEL_HEIGHT * len(series) + 50.0))
    _scales(axes, view, series)
    styles = line_styles(view)
    for method, rows in reversed(series.items()):
        _line(axes, view, rows, *styles[method])
    ends = zip(labels_of(series), series.items(), strict=True)
    fit_ends(axes, [(rows[-1]["mean"], label, _ink(styles[method][0])) for label, (method, rows) in ends])
    return figure


def _ink(colour: str) -> str:
    """The colour of a line's name: the grey of yardsticks is too light to read."""
    return COLOURS["soft"] if colour == COLOURS["yardstick"] else colour


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


def _line(axes: "Axes", view: Comparison, rows: Sequence[ComparisonRow], colour: str, dash: Any) -> None:
    xs = [value_of(row["variant"]) for row in rows]
    if colour != COLOURS["yardstick"]:
        ends = [*(interval_of(row)[0] for row in rows), *(interval_of(row)[1] for row in reversed(rows))]
        axes.fill([*xs, *reversed(xs)], ends, color=colour, alpha=0.1, lw=0)
    axes.plot(xs, [row["mean"] for row in rows], color=colour, ls=dash, lw=3 if colour == COLOURS["l0"] else 2)
    for x, row in zip(xs, rows, strict=True):
        (dot,) = axes.plot([x], [row["mean"]], "o", color=colour, ms=6, mew=0)
        hint(dot, f"{row['method']}, {view.varies} {x}: {_in_words(row)}")


def line_styles(view: Comparison) -> dict[str, tuple[str, Any]]:
    """A colour and a dash for the line of each method; the reference has the first colour, yardsticks are grey."""
    others = [method for method in view.opponents if method != view.reference]
    colours = list(LINE_COLOURS.values())
    num = len(colours) - 1
    styles: dict[str, tuple[str, Any]] = {view.reference: (colours[0], DASHES[0])}
    styles |= {m: (colours[1 + i % num], DASHES[i // num % len(DASHES)]) for i, m in enumerate(others)}
    return styles | {m: (COLOURS["yardstick"], DASHES[1 + i % 2]) for i, m in enumerate(view.yardsticks)}


def learning_curves(seeds: Sequence[Sequence[StepMetrics]]) -> list[Curve]:
    """Return the losses of one method, a curve per seed and side. A total is drawn only where no side is."""
    found = [(name, points) for name in CURVE_NAMES for steps in seeds if (points := points_of(steps, name))]
    of_side = [(name, points) for name, points in found if name.startswith("loss_")]
    return [
        Curve(CURVE_NAMES[name], CURVE_COLOURS.get(name, COLOURS["yardstick"]), points)
        for name, points in of_side or found
    ]


def learning_chart(curves: Sequence[Curve]) -> "Figure":
    """Draw the losses of one method's seeds."""
    return loss_chart(curves, width=360.0, height=190.0, thin=True)
