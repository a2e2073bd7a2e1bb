"""One pole against the other: each trial with its intervals, the front as a step line, and the pick and knee named."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipelines.reporting import blank_figure, chart_style, fit, hint, labels_apart, short, width_of
from pipelines.tune.drawings.trial_marks import (
    BANDED,
    COLORS,
    dot_style,
    has_value,
    legend_dot,
    sources_of,
    value_ticks,
)
from pipelines.tune.search_formats import interval, percent
from pipelines.tune.search_points import ratio_name
from pipelines.tune.search_schema import MeasuredTrial, TrialRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABOVE = 44.0  # pixels above the plot, for the names of marked trials
NAME_LENGTH = 28  # letters of a pole's name along the plot


@chart_style()
def pareto_chart(
    trials: Sequence[TrialRow],
    front: Sequence[int],
    names: Mapping[str, str],
    *,
    marked: Mapping[str, int | None],
    width: float = 480.0,
    height: float = 420.0,
) -> "Figure | None":
    """Draw the trials by their two poles, in percent, on equal scales; None if only the base has a value.

    names: labels of the metrics. marked: trial index by name.
    """
    measured = {i: trial for i, trial in enumerate(trials) if has_value(trial)}
    if all(trial["source"] == "base" for trial in measured.values()):
        return None
    figure, axes = blank_figure(width, height)
    _scales(axes, value_ticks(measured.values(), BANDED), names)
    for trial in measured.values():
        _whiskers(axes, trial)
    if front:
        xs, ys = front_steps([(measured[i]["pole_first"], measured[i]["pole_second"]) for i in front], axes)
        axes.plot(xs, ys, color=COLORS["heat"], lw=2.2, alpha=0.6)
    for trial in measured.values():
        _dot(axes, trial, names)
    _legend(axes, sources_of(trials), has_front=bool(front))
    axes.apply_aspect()
    fit(axes, above=ABOVE)
    axes.apply_aspect()
    _name(axes, {i: name for i, name in names_by_trial(marked).items() if i in measured}, measured)
    return figure


def _scales(axes: "Axes", levels: Sequence[float], names: Mapping[str, str]) -> None:
    texts = [f"{100 * level:g}" for level in levels]
    axes.set(xlim=(levels[0], levels[-1]), ylim=(levels[0], levels[-1]), box_aspect=1, anchor="NW")
    axes.set_xticks(levels, texts)
    axes.set_yticks(levels, texts)
    axes.tick_params(pad=8)
    axes.grid(color=COLORS["grid"], lw=1)
    axes.set_xlabel(f"{short(names['pole_first'], NAME_LENGTH)} (%)", labelpad=8)
    axes.set_ylabel(f"{short(names['pole_second'], NAME_LENGTH)} (%)", labelpad=6, rotation_mode="anchor")


def _color(source: str) -> str:
    return COLORS["rule" if source == "base" else "heat"]


def _whiskers(axes: "Axes", trial: MeasuredTrial) -> None:
    x, y = (trial[metric] for metric in BANDED)
    across, up = (trial["intervals"][metric] for metric in BANDED)
    for xs, ys in ((across, [y, y]), ([x, x], up)):
        axes.plot(xs, ys, color=_color(trial["source"]), lw=1, alpha=0.55)


def _dot(axes: "Axes", trial: MeasuredTrial, names: Mapping[str, str]) -> None:
    style = dot_style(trial["source"], _color(trial["source"]), 4.0)
    (dot,) = axes.plot([trial["pole_first"]], [trial["pole_second"]], **style)
    poles = ", ".join(f"{names[m]} {percent(trial[m])} ({interval(trial['intervals'][m])})" for m in BANDED)
    hint(dot, f"{ratio_name(trial['t'])}, {trial['source']}: {poles}")


def front_steps(points: Sequence[tuple[float, float]], axes: "Axes") -> tuple[list[float], list[float]]:
    """Return the border of the dominated area, from the left edge past each point down to the bottom."""
    left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    below = [y for _, y in points[1:]] + [bottom]
    xs = [left, *(x for x, _ in points for _ in range(2))]
    ys = [points[0][1], *(end for (_, y), low in zip(points, below, strict=True) for end in (y, low))]
    return xs, ys


def names_by_trial(marked: Mapping[str, int | None]) -> dict[int, str]:
    """Return the name of each marked trial; a trial marked twice has both names."""
    names_of: dict[int, list[str]] = {}
    for name, i in marked.items():
        if i is not None:
            names_of.setdefault(i, []).append(name)
    return {i: " and ".join(names) for i, names in names_of.items()}


def _name(axes: "Axes", names: Mapping[int, str], trials: Mapping[int, MeasuredTrial]) -> None:
    """Name trials above the plot, in free space, with a line from each name to a ring around its dot."""
    points = [(trials[i]["pole_first"], trials[i]["pole_second"]) for i in names]
    leader = {"arrowstyle": "-", "relpos": (0.5, 0.0), "shrinkA": 1, "shrinkB": 8, "color": COLORS["rule"], "lw": 1}
    texts = [
        axes.annotate(f"{name} {ratio_name(trials[i]['t'])}", point, ha="center", arrowprops=leader)
        for (i, name), point in zip(names.items(), points, strict=True)
    ]
    width, height = axes.figure.bbox.size
    wide = max(map(width_of, texts), default=0.0)
    xs = [float(axes.transData.transform(point)[0]) for point in points]
    for text, x in zip(texts, labels_apart(xs, low=wide / 2, high=width - wide / 2, distance=wide + 12), strict=True):
        text.set(anncoords="figure points", position=(x, height - 20))
    for x, y in points:
        axes.plot([x], [y], "o", mfc="none", mec=COLORS["text"], mew=1.6, ms=16)


def _legend(axes: "Axes", sources: Sequence[str], *, has_front: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [legend_dot(source, _color(source), 4.0) for source in sources]
    names = list(sources)
    if has_front:
        handles.append(Line2D([], [], color=COLORS["heat"], lw=2.2, alpha=0.6))
        names.append("front")
    axes.legend(handles, names, loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, handlelength=1.4)
