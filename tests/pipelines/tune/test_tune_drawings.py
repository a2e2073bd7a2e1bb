"""The drawings of a search: each value is at its place, lines join the right trials, and names are whole."""

import math
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from pipelines.tune.drawings.accuracy import accuracy_chart, ratio_scale, ratio_ticks
from pipelines.tune.drawings.heat_map import HeatPanel, Tile, heat_map_chart
from pipelines.tune.drawings.pareto_front import pareto_chart
from pipelines.tune.drawings.trial_marks import COLORS, is_same_ratio
from pipelines.tune.search_points import ratio_name
from tests.pipelines import figure_views
from tests.pipelines.tune.test_tune_report import trial, unsure, values

NAMES = {"pole_first": "Daring", "pole_second": "Careful", "both_right": "both right"}
HARD = ["$a_1$ & $b$", "_hidden", "<b>x", "W" * 60, "\u653f" * 40]
LOG2 = math.log(2)


def accuracy(trials: list[dict[str, Any]], **parts: Any) -> Axes:
    figure = accuracy_chart(trials, NAMES, **parts)
    assert figure is not None
    assert figure_views.cut_off(figure) == figure_views.overlapping(figure) == []
    return figure.axes[0]


def pareto(trials: list[dict[str, Any]], front: list[int], **marked: int | None) -> Axes:
    figure = pareto_chart(trials, front, NAMES, marked=marked)
    assert figure is not None
    assert figure_views.cut_off(figure) == figure_views.overlapping(figure) == []
    return figure.axes[0]


def dots(axes: Axes, color: str) -> list[tuple[float, float, bool]]:
    """Return the dots of a color, and whether each is filled."""
    found = [line for line in axes.lines if line.get_marker() == "o" and line.get_markeredgecolor() == color]
    return [
        (*map(float, line.get_xydata()[0]), line.get_markerfacecolor() == color)
        for line in found
        if len(line.get_xdata())
    ]


def test_ratios_are_the_same_but_for_the_last_bit() -> None:
    a, b = math.log(0.1 / 0.3), math.log(0.7 / 2.1)
    assert a != b
    assert is_same_ratio(a, b)
    assert is_same_ratio("inf", "inf")
    assert not is_same_ratio("inf", "-inf")
    assert is_same_ratio(None, None)
    assert not is_same_ratio(None, 0.0)


def test_one_side_alone_stands_apart_from_the_finite_ratios() -> None:
    x = ratio_scale([-math.inf, -1.0, 1.0])
    assert [x(t) for t in (-math.inf, -1.0, 0.0, 1.0)] == [pytest.approx(-1.3), -1.0, 0.0, 1.0]  # 0.15 of a span of 2
    left, right = x.limits
    assert left < x(-math.inf)
    assert 1.0 < right < 1.3


def test_a_single_ratio_stands_in_the_middle() -> None:
    x = ratio_scale([0.5])
    assert sum(x.limits) / 2 == pytest.approx(x(0.5))


@pytest.mark.parametrize(
    ("low", "high", "names"),
    [
        (1 / 8, 8, ["1:8", "1:4", "1:2", "1:1", "2:1", "4:1", "8:1"]),
        (1 / 100, 100, ["1:64", "1:16", "1:4", "1:1", "4:1", "16:1", "64:1"]),
        (0.8, 1.5, ["1:1.25", "1.5:1"]),
    ],
)
def test_ticks_are_ratios_of_powers_of_two_where_the_range_holds_them(low, high, names) -> None:
    assert [ratio_name(t) for t in ratio_ticks(math.log(low), math.log(high))] == names


def test_accuracy_is_drawn_against_t_with_a_band_and_one_side_alone_linked_to_it() -> None:
    numbers = unsure(0.5, 0.5)
    trials = [trial(1, 2, numbers), trial(0, 1, numbers), trial(2, 1, numbers), trial(0, 0, numbers, source="base")]
    axes = accuracy(trials, picked=trials[2])
    apart = -LOG2 - 0.15 * 2 * LOG2
    first = [line for line in axes.lines if line.get_color() == COLORS["first"]]
    lines = [[tuple(map(float, place)) for place in line.get_xydata()] for line in first]
    assert [(-LOG2, 0.5), (LOG2, 0.5)] in lines  # the curve
    assert [(apart, 0.5), (-LOG2, 0.5)] in lines  # the link
    assert [(apart, 0.0), (apart, 1.0)] in lines  # an interval, where there is no band
    assert [(-LOG2, 0.0), (-LOG2, 1.0)] not in lines
    assert [(0.0, 0.5), (1.0, 0.5)] in lines  # the base, over the whole width
    bands = [patch.get_xy()[:4].tolist() for patch in axes.patches]
    assert bands == [[[-LOG2, 0.0], [LOG2, 0.0], [LOG2, 1.0], [-LOG2, 1.0]]] * 2  # both right has none
    assert [y for _, y, _ in dots(axes, COLORS["both"])] == [0.0] * 3
    assert (axes.get_ylim(), [x for (x, _), *_ in figure_views.points(axes, COLORS["text"])]) == ((0.0, 1.0), [LOG2])
    ratios = [(pytest.approx(t, abs=1e-9), name) for t, name in ((-LOG2, "1:2"), (0.0, "1:1"), (LOG2, "2:1"))]
    assert figure_views.ticks(axes.xaxis) == [*ratios, (apart, "0 : 1")]
    assert {"Daring", "Careful", "both right", "trained", "base", "pick"} <= set(figure_views.words(axes.figure))


def curves(axes: Axes) -> list[Any]:
    """Return the solid lines between dots of different ratios."""
    return [line for line in axes.lines if line.get_linestyle() == "-" and len(set(line.get_xdata())) > 1]


def test_trials_that_share_a_ratio_are_dots_without_a_line() -> None:
    trials = [trial(1, 1, values(0.5, 0.6)), trial(2, 2, values(0.7, 0.6)), trial(2, 1, values(0.7, 0.6))]
    axes = accuracy(trials)
    assert (curves(axes), list(axes.patches)) == ([], [])
    assert len(dots(axes, COLORS["first"])) == 3
    assert len(figure_views.points(axes, COLORS["first"])) == 3  # each has its interval
    assert not curves(accuracy([trials[0], {**trials[2], "changes": {"train.lr": 0.1}}]))
    beside = accuracy(trials, aside={1})
    assert len(curves(beside)) == 3
    first = [
        line for line in beside.lines if line.get_marker() == "o" and line.get_markeredgecolor() == COLORS["first"]
    ]
    places = [line.get_transform().transform(line.get_xydata())[0][0] for line in first]
    assert places[1] - places[0] == pytest.approx(7.0)
    assert len([line for line in figure_views.points(beside, COLORS["first"]) if line[0][0] == line[1][0]]) == 1


def test_a_soup_is_hollow_and_the_legend_names_what_is_drawn() -> None:
    axes = accuracy([trial(1, 2, values(0.5, 0.6)), trial(2, 1, values(0.7, 0.6), source="soup")])
    assert [is_filled for *_, is_filled in dots(axes, COLORS["first"])] == [True, False]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["trained", "soup"]


def test_the_pareto_plot_has_equal_scales_and_a_step_line_around_what_the_front_dominates() -> None:
    numbers, better = unsure(0.25, 0.75), unsure(0.5, 0.5)
    axes = pareto([trial(1, 2, numbers), trial(4, 1, better), trial(1, 1)], [0, 1])
    box = axes.get_window_extent()
    assert axes.get_xlim() == axes.get_ylim() == (0.0, 1.0)
    assert box.width == pytest.approx(box.height)
    assert dots(axes, COLORS["heat"]) == [(0.25, 0.75, True), (0.5, 0.5, True)]
    # From the left edge to the first point, then down and across to the next, then down to the bottom.
    steps = [(0.0, 0.75), (0.25, 0.75), (0.25, 0.5), (0.5, 0.5), (0.5, 0.0)]
    assert steps in figure_views.points(axes, COLORS["heat"])
    whiskers = [line for line in figure_views.points(axes, COLORS["heat"]) if len(line) == 2]
    assert whiskers[:2] == [[(0.0, 0.75), (1.0, 0.75)], [(0.25, 0.0), (0.25, 1.0)]]
    assert {"Daring (%)", "Careful (%)", "trained", "front"} <= set(figure_views.words(axes.figure))


def test_pick_and_knee_are_ringed_and_named_by_ratio() -> None:
    trials = [trial(1, 2, unsure(0.25, 0.75)), trial(4, 1, unsure(0.26, 0.74)), trial(1, 1)]
    both = pareto(trials, [0], pick=0, knee=0)
    assert "pick and knee 1:2" in figure_views.words(both.figure)
    two = pareto(trials, [0], pick=0, knee=1)
    assert {"pick 1:2", "knee 4:1"} <= set(figure_views.words(two.figure))
    rings = [line.get_xydata()[0].tolist() for line in two.lines if line.get_markersize() == 16]
    assert rings == [[0.25, 0.75], [0.26, 0.74]]
    assert not [word for word in figure_views.words(pareto(trials, [], pick=None, knee=2).figure) if "knee" in word]


def test_there_is_nothing_to_draw_where_no_trial_was_measured() -> None:
    failed = [trial(1, 1), trial(0, 0, values(0.5, 0.5), source="base")]
    assert accuracy_chart(failed, NAMES) is None
    assert pareto_chart(failed, [], NAMES, marked={"pick": None, "knee": None}) is None


@pytest.mark.parametrize("name", HARD)
def test_any_name_of_a_pole_is_shown_as_it_is_and_whole(name: str) -> None:
    trials = [trial(1, 2, values(0.5, 0.6)), trial(2, 1, values(0.7, 0.6))]
    names = NAMES | {"pole_first": name, "pole_second": name}
    for figure in (accuracy_chart(trials, names), pareto_chart(trials, [0], names, marked={"pick": 0})):
        assert figure is not None
        assert figure_views.cut_off(figure) == []
        assert sum(word.startswith(name[:6]) for word in figure_views.words(figure)) == 2
        assert not any(text.get_parse_math() for text in figure_views.visible_texts(figure))


def tile(alpha: float, beta: float, value: float | None, **changes: Any) -> Tile:
    own = {"kind": "soup", "mark": "soup", "hint": "", "is_picked": False}
    return Tile(alpha, beta, value, **own | changes)


def test_the_heat_map_has_alpha_down_and_beta_across_and_frames_what_was_trained_and_picked() -> None:
    tiles = [tile(2, 1, 0.1), tile(1, 2, 0.2, kind="trained"), tile(1, 1, 1.0), tile(2, 2, None, is_picked=True)]
    figure = heat_map_chart([HeatPanel("One (%)", tiles), HeatPanel("All (%)", tiles), HeatPanel("Flip (%)", tiles)])
    axes = figure.axes[0]
    assert figure_views.ticks(axes.xaxis) == [(0.5, "1"), (1.5, "2")]
    assert figure_views.ticks(axes.yaxis) == [(0.5, "1"), (1.5, "2")]
    assert axes.yaxis_inverted()
    placed = {text.get_text(): text.get_position() for text in axes.texts}
    assert [(math.floor(x), math.floor(y)) for x, y in map(placed.get, ("10.0", "20.0", "100.0", "\u2013"))] == [
        (0, 1),
        (1, 0),
        (0, 0),
        (1, 1),
    ]
    shades = [p for p in axes.patches if isinstance(p, Rectangle) and p.get_linewidth() == 0]
    assert [p.get_alpha() for p in shades] == [pytest.approx(a) for a in (0.07, 0.14, 0.7)] + [None]
    frames = [
        (p.get_linewidth(), math.floor(p.get_x()), math.floor(p.get_y())) for p in axes.patches if p not in shades
    ]
    assert frames == [(1.4, 1, 0), (3, 1, 1)]
    boxes = [found.get_window_extent() for found in figure.axes]
    assert {(round(box.width), round(box.height)) for box in boxes} == {(2 * 84, 2 * 44)}
    assert boxes[0].y0 == pytest.approx(boxes[1].y0)  # two in a line
    assert boxes[2].y1 < boxes[0].y0


@pytest.mark.parametrize("name", [*HARD, "Both right (%), " + ", ".join(f"train.option_{i} = 0.001" for i in range(9))])
def test_any_name_of_a_panel_and_any_mark_is_shown_whole(name: str) -> None:
    tiles = [tile(0.000123, beta, 0.5, mark="= 0.000123:0.000456") for beta in (0.000456, 1.5)]
    figure = heat_map_chart([HeatPanel(name, tiles), HeatPanel("One", tiles)])
    assert figure_views.cut_off(figure) == []
    assert figure_views.overlapping(figure) == []
    assert any(word.startswith(name[:6]) for word in figure_views.words(figure))
