"""Figures of a trial: how often each pole, and both poles at once, are answered right, as means over axes."""

from collections.abc import Sequence
from dataclasses import replace

from pft_core.data import SIDES, Form
from pft_core.evaluation import CountTable, Outcome, count_table
from pipelines.tune.search_schema import POLES, FigureName, SoupGap

Figures = dict[str, float | None]


def figures_of(outcomes: Sequence[Outcome], *, form: Form) -> Figures:
    """Return values by name. form: the form whose accuracy the poles report; all_first, all_second: *All*, if asked."""
    tables = tables_of(outcomes, form=form)
    figures: Figures = {name: table.values()[0] for name, table in tables.items()}
    figures["worse_pole"] = min(value for name in POLES if (value := figures[name]) is not None)
    for name, side in zip(("all_first", "all_second"), SIDES, strict=True):
        table = count_table([outcomes], "all", axis=None, side=side)
        figures[name] = table.values()[0] if table else None
    return figures


def tables_of(outcomes: Sequence[Outcome], *, form: Form) -> dict[FigureName, CountTable]:
    """Return the counts behind each pole's accuracy and both right."""
    tables: dict[FigureName, CountTable | None] = {
        name: count_table([outcomes], form, axis=None, side=side) for name, side in zip(POLES, SIDES, strict=True)
    }
    tables["both_right"] = count_table([outcomes], "both_right", axis=None, side=None)
    return {name: table for name, table in tables.items() if table}


def intervals_of(outcomes: Sequence[Outcome], *, form: Form) -> dict[FigureName, list[float]]:
    """Return 95% bootstrap intervals, clustered by scenario; the worse pole has the interval of the pole it is."""
    tables = tables_of(outcomes, form=form)
    intervals = {name: list(table.interval()) for name, table in tables.items()}
    worse = min(POLES, key=lambda name: tables[name].values()[0])
    return intervals | {"worse_pole": intervals[worse]}


def gaps(soup: Sequence[Outcome], trained: Sequence[Outcome], *, form: Form) -> dict[FigureName, SoupGap]:
    """Return soup, trained, and their gap with its interval, for each pole and both right, on items both answered.

    The worse pole has no gap, because the soup and the training may differ in which pole it is.
    """
    of_item = {(o.item_id, o.form): o for o in trained}
    pairs = [(o, of_item[o.item_id, o.form]) for o in soup if (o.item_id, o.form) in of_item]
    tables = [tables_of(outcomes, form=form) for outcomes in zip(*pairs, strict=True)]
    return {name: _gap(tables[0][name], tables[1][name]) for name in tables[0]}


def _gap(soup: CountTable, trained: CountTable) -> SoupGap:
    difference = replace(trained, numerators_SN=trained.numerators_SN - soup.numerators_SN)
    low, high = difference.interval()
    return {
        "soup": soup.values()[0],
        "trained": trained.values()[0],
        "gap": difference.values()[0],
        "low": low,
        "high": high,
    }
