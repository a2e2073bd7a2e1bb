"""Accuracy by t = log(alpha / beta), one line per metric; one side alone has no finite t and is drawn at the edge."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pipelines.reporting import annotate, blank_figure, chart_style, fit_ends, hint, short
from pipelines.tune.drawings.trial_marks import (
    BANDED,
    COLORS,
    base_of,
    dot_style,
    has_value,
    legend_dot,
    sources_of,
    value_ticks,
)
from pipelines.tune.search_formats import interval, percent
from pipelines.tune.search_points import ratio_name
from pipelines.tune.search_schema import FigureName, MeasuredTrial, TrialRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS: dict[FigureName, str] = {"pole_first": "first", "pole_second": "second", "both_right": "both"}  # colors
END_GAP, MARGIN = (
    0.15,
    0.04,
)  # in spans of finite t: out to one side alone, and from the last dot to the frame
ASIDE = 7.0  # pixels between the two dots of one ratio
MAX_TICKS = 9  # ratios that stay readable along the axis
LABEL_LENGTH = 16  # letters at the end of a line
LEGEND = {"borderaxespad": 0.0, "handletextpad": 0.5, "columnspacing": 1.5}  # in letters
LEVEL, PICK = (0, (7, 5)), (0, (3, 3))  # dashes, in pixels


@dataclass(frozen=True)
class RatioScale:
    """Positions of t: finite values lie between `low` and `high`, one side alone at `left` or `right`."""

    low: float
    high: float
    left: float
    right: float

    def __call__(self, t: float) -> float:
        if math.isinf(t):
            return self.right if t > 0 else self.left
        return t

    @property
    def limits(self) -> tuple[float, float]:
        margin = MARGIN * (self.high - self.low)
        return self.left - margin, self.right + margin


def ratio_scale(ts: Collection[float]) -> RatioScale:
    """Fit a scale to values of t; a single ratio is centered."""
    finite = [t for t in ts if math.isfinite(t)] or [0.0]
    low, high = min(finite), max(finite)
    if low == high:
        low, high = low - math.log(2), high + math.log(2)
    gap = END_GAP * (high - low)
    return RatioScale(low, high, low - gap * (-math.inf in ts), high + gap * (math.inf in ts))


def ratio_ticks(low: float, high: float) -> list[float]:
    """Return t of at most MAX_TICKS ratios that are powers of two, 1:1 included; for a narrow range, its ends."""
    first, last = math.ceil(low / math.log(2) - 1e-9), math.floor(high / math.log(2) + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / MAX_TICKS))
    ticks = [k * math.log(2) for k in range(first, last + 1) if k % stride == 0]
    return ticks if len(ticks) > 1 else [low, high]


@dataclass(frozen=True)
class TrialMark:
    """A measured trial on the scale. is_aside: drawn beside the line, not on it."""

    t: float
    x: float
    trial: MeasuredTrial
    is_aside: bool

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.t)


@chart_style()
def accuracy_chart(
    trials: Sequence[TrialRow],
    names: Mapping[str, str],
    *,
    picked: TrialRow | None = None,
    aside: Collection[int] = (),
    width: float = 700.0,
    height: float = 420.0,
) -> "Figure | None":
    """Draw the accuracy of the trials, in percent, by ratio; None if no trial with a ratio has a value.

    names: labels of the metrics. aside: indices of trials drawn beside the line, such as those that verify a soup.
    """
    measured = sorted(
        ((float(t["t"]), i in aside, t) for i, t in enumerate(trials) if has_value(t) and t["t"] is not None),
        key=lambda item: item[0],
    )
    if not measured:
        return None
    scale = ratio_scale([t for t, *_ in measured])
    places = [TrialMark(t, scale(t), trial, is_aside) for t, is_aside, trial in measured]
    base = base_of(trials)
    figure, axes = blank_figure(width, height)
    _scales(axes, scale, places, value_ticks([*(p.trial for p in places), *([base] if base else [])], list(METRICS)))
    picked_x = None if picked is None or picked["t"] is None else scale(float(picked["t"]))
    if picked_x is not None:
        axes.axvline(picked_x, color=COLORS["text"], lw=1.4, ls=PICK)
    for metric in reversed(METRICS):
        _metric(axes, metric, places, base, names[metric])
    _legend(axes, sources_of(trials), has_pick=picked_x is not None)
    last = places[-1].trial
    fit_ends(axes, [(last[m], short(names[m], LABEL_LENGTH), COLORS[color]) for m, color in METRICS.items()])
    return figure


def _scales(axes: "Axes", scale: RatioScale, places: Sequence[TrialMark], levels: Sequence[float]) -> None:
    is_any_finite = any(place.is_finite for place in places)
    marks = [(t, ratio_name(t)) for t in (ratio_ticks(scale.low, scale.high) if is_any_finite else [])]
    present = {place.t for place in places}
    marks += [(scale(t), name) for t, name in ((-math.inf, "0 : 1"), (math.inf, "1 : 0")) if t in present]
    axes.set_xlim(*scale.limits)
    axes.set_xticks([x for x, _ in marks], [name for _, name in marks])
    axes.set_ylim(levels[0], levels[-1])
    axes.set_yticks(levels, [f"{100 * level:g}" for level in levels])
    axes.tick_params(pad=8)
    axes.set_xlabel("alpha : beta", labelpad=8)
    axes.grid(axis="y", color=COLORS["grid"], lw=1)
    annotate(axes, "%", (0.0, 1.0), (-8.0, 8.0), ha="right", color=COLORS["soft"], size=11)


def _metric(
    axes: "Axes", metric: FigureName, places: Sequence[TrialMark], base: MeasuredTrial | None, name: str
) -> None:
    """Draw one metric: the level of the base, the line with its band, and a dot per trial."""
    color = COLORS[METRICS[metric]]
    if base is not None:
        hint(axes.axhline(base[metric], color=color, lw=1.2, ls=LEVEL, alpha=0.8), f"base: {name}")
    line = line_places(places)
    inner = [place for place in line if place.is_finite]
    _line(axes, metric, line, inner if len(inner) > 1 else [], color)
    banded = {id(place) for place in inner} if len(inner) > 1 else set()
    for place in places:
        _dot(axes, metric, place, color, name, has_interval=metric in BANDED and id(place) not in banded)


def line_places(places: Sequence[TrialMark]) -> list[TrialMark]:
    """Return the marks that a line joins.

    Return none if trials share a ratio or differ in anything else: then the ratio alone does not decide the value.
    """
    line = [place for place in places if not place.is_aside]
    has_own_ratios = len({place.t for place in line}) == len(line)
    is_alike = all(place.trial["changes"] == line[0].trial["changes"] for place in line)
    return line if has_own_ratios and is_alike else []


def _line(axes: "Axes", metric: FigureName, line: Sequence[TrialMark], inner: Sequence[TrialMark], color: str) -> None:
    width = 1.3 if metric == "both_right" else 2.2
    if inner and metric in BANDED:
        ends = [p.trial["intervals"][metric] for p in inner]
        xs = [p.x for p in inner]
        ys = [*(low for low, _ in ends), *(high for _, high in reversed(ends))]
        axes.fill([*xs, *reversed(xs)], ys, color=color, alpha=0.13, lw=0)
    if inner:
        axes.plot([p.x for p in inner], [p.trial[metric] for p in inner], color=color, lw=width)
    for a, b in pairwise(line):
        if not (a.is_finite and b.is_finite):
            ys = [a.trial[metric], b.trial[metric]]
            axes.plot([a.x, b.x], ys, color=color, lw=1.3, ls=(0, (1, 5)), dash_capstyle="round")


def _dot(axes: "Axes", metric: FigureName, place: TrialMark, color: str, name: str, *, has_interval: bool) -> None:
    from matplotlib.transforms import ScaledTranslation

    trial = place.trial
    shift = ScaledTranslation(ASIDE / 72, 0.0, axes.figure.dpi_scale_trans)
    transform = axes.transData + shift if place.is_aside else axes.transData
    ends = trial["intervals"][metric]
    if has_interval:
        axes.plot([place.x] * 2, ends, color=color, lw=1, alpha=0.55, transform=transform)
    style = dot_style(trial["source"], color, 2.6 if metric == "both_right" else 3.6)
    (dot,) = axes.plot([place.x], [trial[metric]], transform=transform, **style)
    value = f"{percent(trial[metric])}, 95% interval {interval(ends)}"
    hint(dot, f"{name} at {ratio_name(trial['t'])}, {trial['source']}: {value}")


def _legend(axes: "Axes", sources: Sequence[str], *, has_pick: bool) -> None:
    from matplotlib.lines import Line2D

    text = COLORS["text"]
    level = Line2D([], [], color=text, lw=1.2, ls=LEVEL, alpha=0.8)
    handles = [level if source == "base" else legend_dot(source, text, 3.6) for source in sources]
    names = list(sources)
    if has_pick:
        handles.append(Line2D([], [], color=text, lw=1.4, ls=PICK))
        names.append("pick")
    legend = axes.legend(handles, names, loc="lower left", ncols=len(names), frameon=False, **LEGEND)
    legend.set_bbox_to_anchor((0.0, 1.03))
