"""The figures of a trial: how often each pole, and both at once, are answered right; means over axes."""

from collections.abc import Sequence
from dataclasses import replace

from pft_core.data import SIDES, Form
from pft_core.evaluation import CountTable, Outcome, count_table
from pipelines.tune.search_schema import POLES, FigureName, SoupGap

Figures = dict[str, float | None]


def figures_of(outcomes: Sequence[Outcome], *, form: Form) -> Figures:
    """Values by name; form: whose accuracy the poles' is. all_first and all_second: *All*, where it was asked."""
    tables = tables_of(outcomes, form=form)
    figures: Figures = {name: table.values()[0] for name, table in tables.items()}
    figures["worse_pole"] = min(value for name in POLES if (value := figures[name]) is not None)
    for name, side in zip(("all_first", "all_second"), SIDES, strict=True):
        table = count_table([outcomes], "all", axis=None, side=side)
        figures[name] = table.values()[0] if table else None
    return figures


def tables_of(outcomes: Sequence[Outcome], *, form: Form) -> dict[FigureName, CountTable]:
    """The counts behind each pole's accuracy and behind both-right."""
    counted: dict[FigureName, CountTable | None] = {
        name: count_table([outcomes], form, axis=None, side=side) for name, side in zip(POLES, SIDES, strict=True)
    }
    counted["both_right"] = count_table([outcomes], "both_right", axis=None, side=None)
    return {name: table for name, table in counted.items() if table}


def intervals_of(outcomes: Sequence[Outcome], *, form: Form) -> dict[FigureName, list[float]]:
    """95 % bootstrap intervals, clustered by scenario; that of the worse pole is that of the pole which does worse."""
    tables = tables_of(outcomes, form=form)
    intervals = {name: list(table.interval()) for name, table in tables.items()}
    worse = min(POLES, key=lambda name: tables[name].values()[0])
    return intervals | {"worse_pole": intervals[worse]}


def gaps(soup: Sequence[Outcome], trained: Sequence[Outcome], *, form: Form) -> dict[FigureName, SoupGap]:
    """Soup, trained, and trained minus soup with its interval, on the items that both answered: each pole, both-right.

    A worse pole has no such line: which one it is may differ between the two.
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
