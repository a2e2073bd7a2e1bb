"""The charts of a report: each number is at its place, every label is whole, and a drawing is the same each time."""

import re
from xml.etree import ElementTree

import matplotlib
import pytest

from pipelines.reporting.bars import Bar, BarGroup, bar_chart, rows_by_pole
from pipelines.reporting.curves import Curve, averaged_points, loss_chart, points_of, spark_line
from pipelines.reporting.drawing import INK, labels_apart, short, short_apart, ticks
from pipelines.reporting.svg import inline_svg, svg_file
from tests.pipelines import figure_views
from tests.pipelines.reporting.test_report import row

HARD = ["$x_1$ & $y$", "_hidden", "<b>&amp;", "W" * 60, "\u653f" * 30, "two\nlines\x00", "\\frac{1}{2}", "100 %"]
BLUE = "#0b6bcb"


def bar(label: str, value: float, **changes) -> Bar:
    parts = {"low": value, "high": value, "text": f"{value:.2f}", "hint": f"{label} has {value}", "color": BLUE}
    return Bar(short(label), value, **parts | changes)


def groups(*labels: str) -> list[BarGroup]:
    return [BarGroup(name, "n = 300", [bar(label, 0.5) for label in labels], 0.5) for name in labels]


def test_bars_are_as_long_as_their_values_and_in_order() -> None:
    first = BarGroup("Daring", "n = 3", [bar("p", 0.25, low=0.2, high=0.31), bar("q", 1.0, is_pale=True)], 0.4)
    figure = bar_chart([first, BarGroup("Careful", "n = 4", [bar("p", 0.0)], None)])
    (axes,) = figure.axes
    assert [patch.get_width() for patch in axes.patches] == [0.25, 1.0, 0.0]
    assert [patch.get_alpha() for patch in axes.patches] == [1.0, 0.38, 1.0]
    tops = [patch.get_y() for patch in axes.patches]
    assert tops == sorted(tops)
    assert axes.yaxis_inverted()
    assert axes.get_xlim() == (0.0, 1.0)
    assert [label for _, label in figure_views.ticks(axes.yaxis)] == ["p", "q", "p"]
    assert {"Daring", "n = 3", "Careful", "n = 4", "0.25", "1.00", "0.00"} <= set(figure_views.words(figure))
    lines = figure_views.points(axes, INK["text"])
    assert {x for x, _ in lines[0]} == {0.2, 0.31}
    assert [{x for x, _ in line} for line in lines if len(line) == 2] == [{0.4}]  # the position baseline, in one group


def test_a_scale_in_percent_is_marked_so() -> None:
    (axes,) = bar_chart(groups("a"), unit=100.0).axes
    assert figure_views.ticks(axes.xaxis) == [(0.0, "0"), (0.25, "25"), (0.5, "50"), (0.75, "75"), (1.0, "100")]


def test_rows_are_sorted_by_axis_and_pole_and_other_metrics_are_left_out() -> None:
    rows = [row("p", "Daring", 0.2), row("q", "Daring", 1.0), row("p", "Careful", 0.0), row("p", None, 0.3)]
    found = rows_by_pole([*rows, row("p", "Daring", 0.9, metric="all")], "one")
    assert found == {"Risk": {"Daring": rows[:2], "Careful": [rows[2]]}}


@pytest.mark.parametrize("label", HARD)
def test_any_label_of_a_bar_is_shown_as_it_is_and_whole(label: str) -> None:
    figure = bar_chart(groups(label, "pft"))
    assert figure_views.cut_off(figure) == []
    assert not figure_views.overlapping(figure)
    assert figure_views.words(figure).count(short(label)) >= 2
    assert not any(text.get_parse_math() for text in figure_views.visible_texts(figure))


@pytest.mark.parametrize("label", HARD)
def test_any_name_of_a_line_is_shown_as_it_is_and_whole(label: str) -> None:
    lines = [Curve(short(name), BLUE, [(1.0, 2.0), (400.0, 1.0)]) for name in (label, "other")]
    figure = loss_chart(lines)
    assert figure_views.cut_off(figure) == []
    assert {short(label), "other"} <= set(figure_views.words(figure))


def test_a_label_is_cut_and_a_letter_of_double_width_counts_twice() -> None:
    assert short("a" * 13) == "a" * 13
    assert short("a" * 14) == "a" * 12 + "\u2026"
    assert short("\u653f" * 7) == "\u653f" * 6 + "\u2026"
    assert short("a\nb\x00c") == "a b c"


def test_long_curves_are_averaged_not_cut() -> None:
    # 320 points and at most 160 drawn: neighbors are averaged, (1 + 2) / 2 = 1.5 first, (319 + 320) / 2 last
    points = averaged_points([(step, float(step)) for step in range(1, 321)])
    assert len(points) == 160
    assert points[0] == (1.5, 1.5)
    assert points[-1] == (319.5, 319.5)


def test_a_curve_skips_what_is_not_a_number() -> None:
    rows = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.0}, {"step": 3}, {"step": 4, "loss": float("inf")}]
    assert points_of(rows, "loss") == [(2.0, 1.0)]
    assert points_of([{"step": 1}], "loss") == []


def test_losses_are_drawn_from_zero_and_named_once() -> None:
    points = [(1.0, 4.0), (5.0, 2.5), (10.0, 1.0)]
    lower = [(step, loss - 0.5) for step, loss in points]
    figure = loss_chart([Curve("first pole", BLUE, points), Curve("first pole", BLUE, lower)])
    (axes,) = figure.axes
    assert figure_views.points(axes, BLUE) == [points, lower]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0.0, 10.0), (0.0, 4.0))
    assert figure_views.words(figure).count("first pole") == 1
    assert figure_views.ticks(axes.yaxis) == [(float(y), f"{y}") for y in range(5)]


@pytest.mark.parametrize("value", [0.0, -2.0, 1e-9, 1e9])
def test_a_loss_of_any_size_and_one_point_are_drawn(value: float) -> None:
    figure = loss_chart([Curve("loss", BLUE, [(1.0, value)])])
    low, high = figure.axes[0].get_ylim()
    assert low <= value <= high
    assert figure_views.cut_off(figure) == []
    spark = spark_line([(1.0, value)], BLUE)
    low, high = spark.axes[0].get_ylim()
    assert low <= value <= high


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 2.3, [0, 0.5, 1, 1.5, 2, 2.5]),
        (0.0, 400, [0, 100, 200, 300, 400]),
        (0.43, 0.81, [0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        (0.5, 0.5, [0.5, 0.52, 0.54, 0.56, 0.58, 0.6]),
    ],
)
def test_ticks_are_round_and_hold_the_range(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_labels_of_lines_that_end_together_do_not_overlap() -> None:
    assert labels_apart([100.0, 101.0], low=0, high=200, distance=15) == [100.0, 115.0]
    assert labels_apart([199.0, 198.0, 50.0], low=0, high=200, distance=15) == [200.0, 185.0, 50.0]
    figure = loss_chart([Curve(f"line {i}", BLUE, [(1.0, 1.0), (9.0, 0.5)]) for i in range(6)])
    assert figure_views.overlapping(figure) == []
    assert figure_views.cut_off(figure) == []


def test_a_drawing_for_a_page_refers_to_nothing_and_takes_the_page_s_colors() -> None:
    text = inline_svg(bar_chart(groups("$a$", "<b>")), 'Bars of "x" & y', INK | {"c1": BLUE})
    assert not re.search(r"<\?xml|<!DOCTYPE|xmlns|url\(|href|\bid=|clip|<defs|<style|font-family|#[0-9a-f]{6}", text)
    assert {"var(--c1)", "var(--text)", "var(--soft)", "var(--grid)"} <= set(re.findall(r"var\(--\w+\)", text))
    root = ElementTree.fromstring(text)
    assert (root.attrib["role"], root.attrib["aria-label"]) == ("img", 'Bars of "x" & y')
    assert "$a$ has 0.5" in [title.text for title in root.iter("title")]
    assert {"$a$", "<b>"} <= {element.text for element in root.iter("text")}
    assert root.attrib["viewBox"].split()[2:] == [root.attrib["width"], root.attrib["height"]]


def test_a_drawing_is_the_same_each_time_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(matplotlib.rcParams)

    def made() -> str:
        return svg_file(bar_chart(groups("a", "b")), "Bars", "#ffffff") + inline_svg(
            loss_chart([Curve("loss", BLUE, [(1.0, 2.0), (2.0, 1.0)])]), "Loss", {}
        )

    first = made()
    with matplotlib.rc_context({"font.size": 30, "text.parse_math": True, "lines.linewidth": 9}):
        assert made() == first
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert made() == first
    assert dict(matplotlib.rcParams) == before


def test_a_file_of_its_own_has_its_background_and_font() -> None:
    root = ElementTree.fromstring(svg_file(bar_chart(groups("a")), "Bars", "#ffffff"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root[0].attrib["fill"] == "#ffffff"
    assert "system-ui" in root.attrib["style"]


@pytest.mark.parametrize("text", ["a\x00b", "a\x1bb", "a\ud800b", "a\nb", "a\ufffeb"])
def test_no_letter_that_xml_cannot_hold_enters_a_figure(text: str) -> None:
    group = BarGroup(text, text, [Bar(text, 0.5, 0.4, 0.6, text, text, BLUE)], None)
    for figure in (bar_chart([group]), loss_chart([Curve(text, BLUE, [(1.0, 1.0)])])):
        root = ElementTree.fromstring(svg_file(figure, text, "#ffffff"))
        assert root.attrib["aria-label"] == "a b"
        assert "a b" in [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_curve_of_one_point_is_a_dot_and_others_have_none() -> None:
    for points, num_dots in ([(1.0, 2.0)], 1), ([(1.0, 2.0), (2.0, 1.0)], 0):
        for figure in (loss_chart([Curve("loss", BLUE, points)]), spark_line(points, BLUE)):
            shapes = ElementTree.fromstring(inline_svg(figure, "", {})).iter("path")
            filled = [shape.attrib["d"] for shape in shapes if f"fill: {BLUE}" in shape.attrib.get("style", "")]
            assert len(filled) == num_dots
            assert all("C" in path for path in filled)  # round


def test_a_chart_of_nothing_is_a_mistake_that_says_so() -> None:
    for draw in (lambda: bar_chart([]), lambda: loss_chart([]), lambda: spark_line([], BLUE)):
        with pytest.raises(AssertionError, match="shows nothing: leave it out"):
            draw()


def test_names_that_begin_alike_are_cut_so_that_they_differ() -> None:
    names = ["qwen2.5-7b-lora-alpha", "qwen2.5-7b-lora-gamma", "pft", "another-long-policy"]
    labels = short_apart(names)
    assert labels == ["qwen2.\u2026-alpha", "qwen2.\u2026-gamma", "pft", "another-long\u2026"]
    assert max(map(len, labels)) <= 13
    wide = short_apart(["\u653f" * 9 + "a", "\u653f" * 9 + "b"])
    assert wide == ["\u653f" * 3 + "\u2026" + "\u653f\u653f" + end for end in "ab"]
