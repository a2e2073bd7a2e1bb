"""Geometry of a search's drawings: the heat map, accuracy against the ratio, the Pareto plot; templates place marks.

t = log(alpha / beta), and infinite where one side is trained alone; None stands for the base, which has no ratio.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipelines.reporting import Row, Scale, labels_apart, ticks_between
from pipelines.tune.points import ratio_name

MARGIN = 16.0  # between the frame and the outermost dot
END_GAP = 60.0  # between a finite ratio and one side alone, which no scale can hold
ASIDE = 7.0  # a second dot of one ratio stands this far beside the first
MAX_TICKS = 9  # ratios that can be read along the axis
LABEL_WIDTH = 122.0  # of a label above the Pareto plot
TITLE_LETTER = 8.0  # of a heat map's title
BANDED = ("pole_first", "pole_second")  # metrics drawn with their intervals


def is_same_ratio(a: float | str | None, b: float | str | None) -> bool:
    """Whether two t are one ratio; 0.1 : 0.3 and 0.2 : 0.6 differ in the last bit."""
    if a is None or b is None:
        return a is b
    return math.isclose(float(a), float(b), abs_tol=1e-9)


@dataclass(frozen=True)
class Tile:
    """One cell of a heat map, from its upper left corner; value is None where there is no number."""

    x: float
    y: float
    value: float | None
    cell: Row
    is_picked: bool


@dataclass(frozen=True)
class HeatPanel:
    """One metric over all cells; (left, top) is where its own origin lies in the drawing."""

    name: str
    left: float
    top: float
    tiles: list[Tile]


@dataclass(frozen=True)
class HeatMap:
    """Panels of equal size. Columns and rows: (centre within a panel, beta or alpha)."""

    panels: list[HeatPanel]
    columns: list[tuple[float, float]]
    rows: list[tuple[float, float]]
    tile_width: float
    tile_height: float
    width: float
    height: float


def heat_map(
    panels: Sequence[tuple[str, Sequence[Row], Sequence[float | None]]],
    *,
    picked: Row | None = None,
    tile_width: float = 84.0,
    tile_height: float = 44.0,
    panels_per_line: int = 2,
) -> HeatMap:
    """Lay out panels of (name, cells, their values): alpha down, beta across, both rising.

    picked: the trial whose ratio and changes the marked cells have.
    """
    cells = panels[0][1]
    alphas, betas = (sorted({cell[key] for cell in cells}) for key in ("alpha", "beta"))
    left, top = 58.0, 62.0  # of the first tile: alphas stand on its left, the metric's name and betas above
    xs = {beta: left + i * tile_width for i, beta in enumerate(betas)}
    ys = {alpha: top + i * tile_height for i, alpha in enumerate(alphas)}
    longest = max(TITLE_LETTER * len(name) for name, *_ in panels)
    width, height = left + max(len(betas) * tile_width, longest) + 18.0, top + len(alphas) * tile_height + 18.0
    laid = [
        HeatPanel(
            name,
            width * (i % panels_per_line),
            height * (i // panels_per_line),
            [
                Tile(xs[cell["beta"]], ys[cell["alpha"]], value, cell, is_of(cell, picked))
                for cell, value in zip(own, values, strict=True)
            ],
        )
        for i, (name, own, values) in enumerate(panels)
    ]
    return HeatMap(
        laid,
        [(x + tile_width / 2, beta) for beta, x in xs.items()],
        [(y + tile_height / 2, alpha) for alpha, y in ys.items()],
        tile_width,
        tile_height,
        width * min(len(laid), panels_per_line),
        height * math.ceil(len(laid) / panels_per_line),
    )


def is_of(cell: Row, trial: Row | None) -> bool:
    """Whether a cell has a trial's ratio and its other changes."""
    return trial is not None and is_same_ratio(cell["t"], trial["t"]) and cell["changes"] == trial["changes"]


@dataclass(frozen=True)
class RatioScale:
    """Positions of t: finite ones on a scale, one side alone at an edge of its own."""

    finite: Scale
    left: float
    right: float

    def __call__(self, t: float) -> float:
        if math.isinf(t):
            return self.right if t > 0 else self.left
        return self.finite(t)


def ratio_scale(ts: Collection[float], *, start: float, end: float) -> RatioScale:
    """Fit a scale to some t; a single ratio stands in the middle."""
    finite = [t for t in ts if math.isfinite(t)] or [0.0]
    low, high = min(finite), max(finite)
    if low == high:
        low, high = low - math.log(2), high + math.log(2)
    left, right = start + MARGIN, end - MARGIN
    inner_left = left + END_GAP * (-math.inf in ts)
    inner_right = right - END_GAP * (math.inf in ts)
    return RatioScale(Scale(low, high, inner_left, inner_right), left, right)


def ratio_ticks(low: float, high: float) -> list[float]:
    """Return t of ratios that are powers of two, 1:1 among them, at most MAX_TICKS; a narrow range has its ends."""
    first, last = math.ceil(low / math.log(2) - 1e-9), math.floor(high / math.log(2) + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / MAX_TICKS))
    found = [k * math.log(2) for k in range(first, last + 1) if k % stride == 0]
    return found if len(found) > 1 else [low, high]


@dataclass(frozen=True)
class Dot:
    """One trial's value; interval: its lower and upper end in the drawing, None where a band or nothing shows it."""

    x: float
    y: float
    interval: tuple[float, float] | None
    trial: Row


@dataclass(frozen=True)
class Line:
    """One metric over t: polyline and polygon text over the finite ratios (empty: dots only), and dotted links beyond.

    base_y: where the base lies, None without one.
    """

    metric: str
    points: str
    band: str
    links: list[str]
    dots: list[Dot]
    base_y: float | None
    label_y: float


@dataclass(frozen=True)
class AccuracyPanel:
    """Metrics against t. x_ticks: (position, ratio)."""

    lines: list[Line]
    width: float
    height: float
    x_ticks: list[tuple[float, str]]
    y: Scale
    y_ticks: list[float]
    left: float
    right: float
    picked_x: float | None


def accuracy_panel(
    trials: Sequence[Row],
    *,
    metrics: Sequence[str] = (*BANDED, "both_right"),
    picked: Row | None = None,
    aside: Collection[int] = (),
    width: float = 700.0,
    height: float = 420.0,
) -> AccuracyPanel | None:
    """Lay out what the trials reach against t; None where none has a value.

    aside: indices of trials that stand beside the line, such as those that verify a soup. Where others share a ratio
    or differ in more than it there is no line, for then the ratio alone does not say what a trial reaches.
    """
    drawn = sorted(
        ((float(t["t"]), i in aside, t) for i, t in enumerate(trials) if t["t"] is not None and has_value(t)),
        key=lambda found: found[0],
    )
    if not drawn:
        return None
    base = base_of(trials)
    y = _value_scale([*(t for _, _, t in drawn), *([base] if base else [])], metrics, start=height - 46.0, end=44.0)
    left, right = 46.0, width - 112.0
    x = ratio_scale([t for t, _, _ in drawn], start=left, end=right)
    lines = [_line(metric, drawn, x, y, base) for metric in metrics]
    labels = labels_apart([line.label_y for line in lines], bottom=y.start)
    lines = [Line(**(vars(line) | {"label_y": label})) for line, label in zip(lines, labels, strict=True)]
    finite = [t for t, _, _ in drawn if math.isfinite(t)]
    x_ticks = [(x(t), ratio_name(t)) for t in (ratio_ticks(x.finite.low, x.finite.high) if finite else [])]
    x_ticks += [(x(t), name) for t, name in ((-math.inf, "0 : 1"), (math.inf, "1 : 0")) if t in {d[0] for d in drawn}]
    picked_x = None if picked is None or picked["t"] is None else x(float(picked["t"]))
    return AccuracyPanel(lines, width, height, x_ticks, y, _steps(y), left, right, picked_x)


def has_value(trial: Row) -> bool:
    """Whether a trial was measured; one that was stopped or failed was not."""
    return trial["pole_first"] is not None


def base_of(trials: Sequence[Row]) -> Row | None:
    return next((trial for trial in trials if trial["source"] == "base" and has_value(trial)), None)


def _value_scale(trials: Sequence[Row], metrics: Sequence[str], *, start: float, end: float) -> Scale:
    """A scale that holds every value and the intervals that are drawn."""
    ends = [trial[metric] for trial in trials for metric in metrics]
    ends += [end for trial in trials for metric in metrics if metric in BANDED for end in trial["intervals"][metric]]
    steps = ticks_between(min(ends), max(ends))
    return Scale(steps[0], steps[-1], start, end)


def _steps(scale: Scale) -> list[float]:
    return ticks_between(scale.low, scale.high)


def _line(metric: str, drawn: Sequence[tuple[float, bool, Row]], x: RatioScale, y: Scale, base: Row | None) -> Line:
    on_line = [(t, trial) for t, is_aside, trial in drawn if not is_aside]
    is_line = len({t for t, _ in on_line}) == len(on_line) and all(
        trial["changes"] == on_line[0][1]["changes"] for _, trial in on_line
    )
    marks = [(x(t), y(trial[metric]), math.isfinite(t), trial) for t, trial in on_line]
    inner = [mark for mark in marks if mark[2]] if is_line else []
    inner = inner if len(inner) > 1 else []
    banded = {id(trial) for *_, trial in inner}
    dots = [
        Dot(
            x(t) + ASIDE * is_aside,
            y(trial[metric]),
            None if id(trial) in banded or metric not in BANDED else _interval(metric, trial, y),
            trial,
        )
        for t, is_aside, trial in drawn
    ]
    neighbours = pairwise(marks) if is_line else ()
    return Line(
        metric,
        " ".join(f"{px},{py}" for px, py, *_ in inner),
        _band(metric, inner, y) if metric in BANDED else "",
        [f"{a[0]},{a[1]} {b[0]},{b[1]}" for a, b in neighbours if not (a[2] and b[2])],
        dots,
        y(base[metric]) if base else None,
        dots[-1].y,
    )


def _interval(metric: str, trial: Row, scale: Scale) -> tuple[float, float]:
    low, high = trial["intervals"][metric]
    return scale(low), scale(high)


def _band(metric: str, marks: Sequence[tuple[float, float, bool, Row]], y: Scale) -> str:
    """The lower ends forwards, then the upper ends backwards."""
    lower = [f"{x},{y(trial['intervals'][metric][0])}" for x, _, _, trial in marks]
    upper = [f"{x},{y(trial['intervals'][metric][1])}" for x, _, _, trial in reversed(marks)]
    return " ".join(lower + upper)


@dataclass(frozen=True)
class Point:
    """One trial by what it reaches on both poles; across and down: its intervals in the drawing."""

    x: float
    y: float
    across: tuple[float, float]
    down: tuple[float, float]
    trial: Row
    is_front: bool


@dataclass(frozen=True)
class Label:
    """A name above the plot, at (x, y), and the dot that it is of."""

    x: float
    y: float
    text: str
    point: Point


@dataclass(frozen=True)
class ParetoPanel:
    """pole_first across, pole_second up, over one pair of equal scales; front: a step line as polyline text."""

    points: list[Point]
    front: str
    labels: list[Label]
    width: float
    height: float
    x: Scale
    y: Scale
    ticks: list[float]


def pareto_panel(
    trials: Sequence[Row],
    front: Sequence[int],
    *,
    marked: Mapping[str, int | None],
    width: float = 480.0,
    height: float = 420.0,
) -> ParetoPanel | None:
    """Lay out the trials by their two poles; None where none but the base has a value. marked: name -> trial index."""
    drawn = {i: trial for i, trial in enumerate(trials) if has_value(trial)}
    if all(trial["source"] == "base" for trial in drawn.values()):
        return None
    side = height - 46.0 - 44.0
    y = _value_scale(list(drawn.values()), BANDED, start=height - 46.0, end=44.0)
    x = Scale(y.low, y.high, 58.0, 58.0 + side)
    points = {
        i: Point(
            x(trial["pole_first"]),
            y(trial["pole_second"]),
            _interval("pole_first", trial, x),
            _interval("pole_second", trial, y),
            trial,
            i in front,
        )
        for i, trial in drawn.items()
    }
    steps = front_steps([(points[i].x, points[i].y) for i in front], x.start, y.start)
    return ParetoPanel(list(points.values()), steps, _labels(points, marked, width), width, height, x, y, _steps(y))


def front_steps(points: Sequence[tuple[float, float]], left: float, bottom: float) -> str:
    """Draw the border of what the front dominates, from the left edge over each point down to the bottom."""
    if not points:
        return ""
    corners = [(left, points[0][1])]
    for (x, y), (_, below) in zip(points, [*points[1:], (0.0, bottom)], strict=True):
        corners += [(x, y), (x, below)]
    return " ".join(f"{x},{y}" for x, y in corners)


def _labels(points: Mapping[int, Point], marked: Mapping[str, int | None], width: float) -> list[Label]:
    """Name the marked trials above the plot: over a trial of the front nothing else can lie."""
    names: dict[int, list[str]] = {}
    for name, i in marked.items():
        if i is not None and i in points:
            names.setdefault(i, []).append(name)
    half = LABEL_WIDTH / 2
    wanted = [max(points[i].x, half) for i in names]
    xs = labels_apart(wanted, bottom=width - half, distance=LABEL_WIDTH)
    return [
        Label(round(x, 1), 20.0, f"{' and '.join(found)} {ratio_name(points[i].trial['t'])}", points[i])
        for (i, found), x in zip(names.items(), xs, strict=True)
    ]


def legend_places(texts: Sequence[str], *, left: float, mark: float = 24.0, gap: float = 18.0) -> list[float]:
    """Return where each entry of a legend line begins: a mark, then a text of about 6.3 units a letter."""
    lengths = [mark + 6.3 * len(text) + gap for text in texts]
    return [round(left + sum(lengths[:i]), 1) for i in range(len(texts))]
