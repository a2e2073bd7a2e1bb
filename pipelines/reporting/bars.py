"""Bar charts of shares: one group of bars per pole of an axis, with intervals and the position baseline."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, TypedDict, TypeVar

from pipelines.reporting.drawing import INK, annotate, blank_figure, chart_style, cut_to, fit, hint, printable, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
HEAD, STEP, GAP, FOOT = 26.0, 24.0, 10.0, 18.0  # pixels: a pole's name, a bar, the space between groups, the scale
BAR, CAP = 15.0, 3.5  # pixels: the height of a bar, half the height of an interval's cap
COUNT_WIDTH = 70.0  # pixels reserved for the note to the right of a pole's name


class PlacedRow(TypedDict):
    """The keys that place a row of any report: metric, axis and pole; the last two are None for a row over all."""

    metric: str
    axis: str | None
    pole: str | None


R = TypeVar("R", bound=PlacedRow)


@dataclass(frozen=True)
class Bar:
    """One bar. value, low, high: shares. text: the value as written beside the bar."""

    label: str
    value: float
    low: float
    high: float
    text: str
    hint: str
    color: str
    is_pale: bool = False
    label_color: str = INK["text"]
    label_weight: int = 400


@dataclass(frozen=True)
class BarGroup:
    """The bars of one pole. note: the number of items behind them. position: the position baseline."""

    pole: str
    note: str
    bars: Sequence[Bar]
    position: float | None

    @property
    def height(self) -> float:
        """The height of the group in the drawing."""
        return HEAD + STEP * len(self.bars)


def rows_by_pole(rows: Iterable[R], metric: str) -> dict[str, dict[str, list[R]]]:
    """Group the rows of a metric by axis and pole; leave out rows over both poles."""
    by_axis: dict[str, dict[str, list[R]]] = {}
    for row in rows:
        axis, pole = row["axis"], row["pole"]
        if row["metric"] == metric and axis is not None and pole is not None:
            by_axis.setdefault(axis, {}).setdefault(pole, []).append(row)
    return by_axis


@chart_style()
def bar_chart(groups: Sequence[BarGroup], *, width: float = 340.0, unit: float = 1.0) -> "Figure":
    """Draw the bars of one axis. unit: how a share of 1 is labeled, such as 100."""
    assert any(group.bars for group in groups), "a chart without a bar shows nothing: leave it out"
    bottom = sum(group.height for group in groups) + GAP * len(groups)
    figure, axes = blank_figure(width, bottom + FOOT)
    axes.set(xlim=(0.0, 1.0), ylim=(bottom, 0.0))
    axes.set_xticks(TICKS, [f"{unit * tick:g}" for tick in TICKS])
    axes.vlines(TICKS, HEAD - 4, bottom, color=INK["grid"], linewidth=1, zorder=0)
    tops = list(accumulate([group.height + GAP for group in groups], initial=0.0))
    for group, top in zip(groups, tops, strict=False):
        _head(axes, group, top)
        _bars(axes, group, top + HEAD)
    _names(axes, groups, tops)
    fit(axes, pad=0.5)
    return figure


def _head(axes: "Axes", group: BarGroup, top: float) -> None:
    from matplotlib.transforms import blended_transform_factory

    across = blended_transform_factory(axes.figure.transSubfigure, axes.transData)
    y = top + HEAD - 6
    note = axes.text(1.0, y, printable(group.note), transform=across, ha="right", color=INK["soft"], size=11)
    pole = axes.text(0.0, y, printable(group.pole), transform=across, weight=700, size=13)
    for text in (note, pole):
        text.set_in_layout(False)
    cut_to(pole, axes.figure.bbox.width - COUNT_WIDTH)


def _bars(axes: "Axes", group: BarGroup, top: float) -> None:
    for i, bar in enumerate(group.bars):
        y = top + STEP * i + 10.5
        alpha = 0.38 if bar.is_pale else 1.0
        (patch,) = axes.barh(y, bar.value, BAR, color=bar.color, alpha=alpha)
        hint(patch, bar.hint)
        whisker = [(bar.low, -CAP), (bar.low, CAP), (bar.low, 0), (bar.high, 0), (bar.high, -CAP), (bar.high, CAP)]
        axes.plot(
            [x for x, _ in whisker], [y + dy for _, dy in whisker], color=INK["text"], alpha=0.75, lw=1.4, zorder=3
        )
    if group.position is not None:
        ends = [top - 1, top + STEP * len(group.bars) - 1]
        axes.plot([group.position] * 2, ends, color=INK["text"], lw=1.6, ls=(0, (3, 3)), zorder=4)


def _names(axes: "Axes", groups: Sequence[BarGroup], tops: Sequence[float]) -> None:
    """Write each bar's name on its left and its value on its right, values right-aligned."""
    bars = [
        (top + HEAD + STEP * i + 10.5, bar)
        for group, top in zip(groups, tops, strict=False)
        for i, bar in enumerate(group.bars)
    ]
    axes.set_yticks([y for y, _ in bars], [printable(bar.label) for _, bar in bars])
    axes.tick_params("y", pad=8, labelsize=12.5)
    values = [
        annotate(axes, bar.text, (1.0, y), (0.0, 0.0), by_value=True, ha="right", va="center_baseline", size=12.5)
        for y, bar in bars
    ]
    for name, value, (_, bar) in zip(axes.get_yticklabels(), values, bars, strict=True):
        name.set(color=bar.label_color, weight=bar.label_weight, va="center_baseline")
        value.set(color=bar.label_color, weight=bar.label_weight)
    widest = max(map(width_of, values))
    for value in values:
        value.set_position((10.0 + widest, 0.0))
