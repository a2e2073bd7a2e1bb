"""The charts of a comparison: the reference stands out, and each mean is at its place with its interval."""

import pytest

from pipelines.compare.report.charts import (
    COLORS,
    DASHES,
    bar_charts,
    learning_chart,
    learning_curves,
    line_chart,
    line_styles,
)
from pipelines.compare.report.claims import Comparison
from pipelines.compare.report.comparison_report import render
from tests.pipelines import figure_views
from tests.pipelines.compare.test_compare_tables import MEANS, comparison, steps, variants_report


def renamed(report: dict, old: str, new: str) -> dict:
    rows = [row | {"method": new if row["method"] == old else row["method"]} for row in report["rows"]]
    return report | {"rows": rows}


def test_bars_are_of_each_axis_and_yardsticks_come_last_and_stand_back() -> None:
    charts = bar_charts(Comparison(comparison()), "one", None)
    assert list(charts) == ["Risk", "Time"]
    (axes,) = charts["Risk"].axes
    labels = ["prompt_only", "sft:first", "sft:mixed", "pft", "position only", "bag-of-words probe"]
    assert [label for _, label in figure_views.ticks(axes.yaxis)] == labels * 2
    inks = [label.get_color() for label in axes.get_yticklabels()]
    assert inks[:6] == [COLORS["text"]] * 4 + [COLORS["soft"]] * 2
    assert axes.get_yticklabels()[3].get_weight() == 700  # the reference
    found = {row["mean"] for row in comparison()["rows"] if row["axis"] == "Risk" and row["metric"] == "one"}
    assert {patch.get_width() for patch in axes.patches} <= found
    assert all(figure_views.cut_off(figure) == [] for figure in charts.values())


def test_a_value_that_position_alone_explains_is_marked() -> None:
    words = figure_views.words(bar_charts(Comparison(comparison()), "all", None)["Risk"])
    assert any(word.endswith("\u2021") for word in words)


def test_means_are_drawn_against_what_varies_with_their_intervals() -> None:
    view = Comparison(variants_report())
    figure = line_chart(view, "one")
    assert figure is not None
    (axes,) = figure.axes
    (line,) = figure_views.points(axes, COLORS["l0"])
    expected = [MEANS["pft"] - 0.03 * (3 - i) for i in range(3)]
    assert line == [(float(x), pytest.approx(y)) for x, y in zip((100, 400, 1600), expected, strict=True)]
    assert axes.get_xscale() == "log"  # 1600 is 16 times 100
    assert figure_views.ticks(axes.xaxis) == [(100.0, "100"), (400.0, "400"), (1600.0, "1600")]
    assert len(axes.patches) == 4  # a band for each method, none for the two yardsticks
    low, high = axes.get_ylim()
    ends = [y for patch in axes.patches for y in patch.get_xy()[:, 1]]
    assert low <= min(ends) <= max(ends) <= high
    assert {"pft", "position only", "bag-of-words probe"} <= set(figure_views.words(figure))
    assert figure_views.cut_off(figure) == []
    assert figure_views.overlapping(figure) == []


def test_a_narrow_range_is_not_logarithmic_and_the_page_says_which_it_is() -> None:
    figure = line_chart(Comparison(variants_report((100, 200, 300))), "one")
    assert figure is not None
    assert figure.axes[0].get_xscale() == "linear"
    assert "is logarithmic" not in render(variants_report((100, 200, 300)))
    assert "the axis of train_size is logarithmic" in render(variants_report())


@pytest.mark.parametrize("report", [comparison(), variants_report(("small", "large")), variants_report((100,))])
def test_there_is_no_line_where_no_number_varies(report) -> None:
    assert line_chart(Comparison(report), "one") is None


@pytest.mark.parametrize("name", ["$\\alpha$ & $b$", "_hidden", "W" * 40, "\u653f" * 20, "<i>x"])
def test_any_name_of_a_method_is_shown_as_it_is_and_whole(name: str) -> None:
    line = line_chart(Comparison(renamed(variants_report(), "sft:first", name)), "one")
    bars = bar_charts(Comparison(renamed(comparison(), "sft:first", name)), "one", None)["Risk"]
    for figure in (line, bars):
        assert figure is not None
        assert figure_views.cut_off(figure) == []
        assert any(word.startswith(name[:6]) for word in figure_views.words(figure))


def test_many_methods_have_room_for_their_names() -> None:
    report = variants_report()
    for i in range(30):
        report["rows"] += [
            row | {"method": f"method {i}"}
            for row in report["rows"]
            if row["method"] == "sft:first" and not row["axis"]
        ]
    figure = line_chart(Comparison(report), "one")
    assert figure is not None
    assert figure_views.cut_off(figure) == []
    assert figure_views.overlapping(figure) == []


def test_each_method_has_a_line_of_its_own_and_yardsticks_are_dashed_grey() -> None:
    styles = line_styles(Comparison(comparison()))
    assert styles["pft"] == (COLORS["l0"], DASHES[0])
    assert [styles[m] for m in ("prompt_only", "sft:first", "sft:mixed")] == [
        (COLORS[name], DASHES[0]) for name in ("l1", "l2", "l3")
    ]
    assert [styles[m] for m in ("position", "bag_of_words")] == [(COLORS["yardstick"], d) for d in DASHES[1:]]
    assert len(set(map(str, styles.values()))) == len(styles)


def test_a_total_is_drawn_only_where_no_side_is() -> None:
    with_total = [[step | {"loss": 9.0} for step in steps(seed)] for seed in range(3)]
    curves = learning_curves(with_total)
    assert [curve.name for curve in curves] == ["first pole"] * 3 + ["second pole"] * 3
    assert [curve.name for curve in learning_curves([[{"step": 1, "loss": 2.0}]])] == ["loss"]
    assert learning_curves([[{"step": 1, "loss": float("nan")}]]) == []
    figure = learning_chart(curves)
    assert len(figure_views.points(figure.axes[0], COLORS["l5"])) == 3
    assert figure_views.words(figure).count("first pole") == 1
    assert figure_views.cut_off(figure) == []


def test_the_same_comparison_is_the_same_page() -> None:
    assert render(variants_report()) == render(variants_report())
