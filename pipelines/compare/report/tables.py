"""A comparison's tables, in the layout of the PFT paper's Tables 2 and 3; `markdown` and `latex` write them out.

Methods are rows, the axes with their poles and an average are columns, One and All are blocks; yardsticks stand below
a rule. Everything is computed from the report.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pft_core.evaluation import METRICS
from pipelines.compare.report.claims import (
    MISSING,
    PLUS_MINUS,
    Comparison,
    against_position,
    against_yardsticks,
    basis,
    differences,
    failures,
    method_label,
    position_mark,
    shown,
    spread,
    standing,
)
from pipelines.compare.statistics import AREA, ComparisonRow

BEST = {"highest": max, "lowest": min}


@dataclass(frozen=True)
class Column:
    """What a column shows, below the heading that it shares with its neighbours."""

    group: str
    name: str
    metric: str | None  # None: that of the block
    axis: str | None
    pole: str | None
    variant: Any


@dataclass(frozen=True)
class TableCell:
    """row: None where there is no number. note: its number of seeds, where the line does not say it."""

    row: ComparisonRow | None
    best: bool = False
    note: str = ""

    @property
    def value(self) -> str:
        return shown(self.row["metric"], self.row["mean"]) if self.row else MISSING

    @property
    def suffix(self) -> str:
        """What follows the value: standard deviation, number of seeds, mark."""
        if self.row is None:
            return ""
        deviation = f" {PLUS_MINUS} {spread(self.row)}" if spread(self.row) else ""
        return deviation + (f" ({self.note})" if self.note else "") + position_mark(self.row)


@dataclass(frozen=True)
class TableLine:
    """One method. note: its number of seeds, where that differs from the others'."""

    method: str
    note: str
    cells: list[TableCell]

    @property
    def label(self) -> str:
        return method_label(self.method) + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class TableBlock:
    """The lines of one metric (title: empty where a table has but one block)."""

    title: str
    methods: list[TableLine]
    yardsticks: list[TableLine]


@dataclass(frozen=True)
class Table:
    """name: for a label. caption: sentences."""

    name: str
    title: str
    columns: list[Column]
    blocks: list[TableBlock]
    caption: list[str]

    @property
    def is_empty(self) -> bool:
        return not (self.columns and self.blocks)

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The shared headings, with the number of columns below each."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.group:
                found[-1] = (column.group, found[-1][1] + 1)
            else:
                found.append((column.group, 1))
        return found


def tables_of(view: Comparison) -> list[Table]:
    """Over what varies, if something does; then for each variant its poles, and its metrics over all axes."""
    tables = [across_variants(view), area(view)] if len(view.variants) > 1 else []
    for variant in view.variants:
        tables += [by_pole(view, variant), by_metric(view, variant)]
    return [table for table in tables if not table.is_empty]


def by_pole(view: Comparison, variant: Any) -> Table:
    """The layout of the paper: per axis and pole, with the average over all; a block each for One and All."""
    rows = [row for row in view.of_variant(variant) if has_block(row["metric"])]
    poles = dict.fromkeys((row["axis"], row["pole"]) for row in rows)
    places = [(axis, pole) for axis, pole in poles if axis is not None and pole is not None]
    columns = [Column(axis, pole, None, axis, pole, variant) for axis, pole in places]
    columns.append(Column("", "Average", None, None, None, variant))
    metrics = [metric for metric in view.metrics if any(row["metric"] == metric for row in rows)]
    blocks = [TableBlock(block_title(m), *lines_of(view, columns, m)) for m in metrics]
    return Table("poles", titled(view, "each pole", variant), columns, blocks, caption(view, metrics, variant))


def by_metric(view: Comparison, variant: Any) -> Table:
    """The other metrics as columns, each the mean over axes."""
    rows = [row for row in view.of_variant(variant) if row["axis"] is None and not has_block(row["metric"])]
    metrics = [metric for metric in view.metrics if any(row["metric"] == metric for row in rows)]
    columns = [Column("Mean over axes", METRICS[m].label, m, None, None, variant) for m in metrics]
    blocks = [TableBlock("", *lines_of(view, columns, None))]
    return Table("metrics", titled(view, "means over axes", variant), columns, blocks, caption(view, metrics, variant))


def across_variants(view: Comparison) -> Table:
    """The means over axes, with a column for each value of what varies."""
    columns = [Column(view.varies, str(variant), None, None, None, variant) for variant in view.variants]
    metrics = [m for m in view.metrics if m != AREA and any(_is_mean(row, m) for row in view.rows)]
    blocks = [TableBlock(block_title(metric), *lines_of(view, columns, metric)) for metric in metrics]
    said = [f"{view.report['title']}: means over axes by {view.varies}.", *reading(view, metrics)]
    return Table("variants", f"Means over axes by {view.varies}", columns, blocks, said + _notes(view, metrics))


def area(view: Comparison) -> Table:
    """The area under the curve over what varies."""
    columns = [Column(f"By {view.varies}", METRICS[AREA].label, AREA, None, None, None)]
    blocks = [TableBlock("", *lines_of(view, columns, AREA))] if AREA in view.metrics else []
    said = [
        f"{view.report['title']}: the mean of both right from {view.varies} {view.variants[0]} to "
        f"{view.variants[-1]}, by the trapezoid rule.",
        *standing(view, AREA, None),
        *differences(view, AREA, None),
    ]
    return Table("area", f"Area under both right, by {view.varies}", columns, blocks, said + _notes(view, [AREA]))


def _is_mean(row: ComparisonRow, metric: str) -> bool:
    return row["metric"] == metric and row["axis"] is None


def _notes(view: Comparison, metrics: Sequence[str]) -> list[str]:
    return [*view.report["captions"], *basis(view, metrics, view.variants), *failures(view)]


def lines_of(
    view: Comparison, columns: Sequence[Column], metric: str | None
) -> tuple[list[TableLine], list[TableLine]]:
    """The lines of the methods, the best of each column marked, and those of the yardsticks, which do not compete."""
    found = {
        method: [view.row(method, c.metric or str(metric), c.axis, c.pole, c.variant) for c in columns]
        for method in view.methods
    }
    best = [best_shown([found[method][i] for method in view.opponents]) for i in range(len(columns))]
    methods = [line_of(view, method, columns, found[method], best) for method in view.opponents]
    yardsticks = [line_of(view, method, columns, found[method], []) for method in view.yardsticks]
    return methods, [line for line in yardsticks if any(cell.row for cell in line.cells)]


def line_of(
    view: Comparison,
    method: str,
    columns: Sequence[Column],
    rows: Sequence[ComparisonRow | None],
    best: Sequence[str | None],
) -> TableLine:
    notes = [view.seeds_note(method, column.variant) for column in columns]
    common = notes[0] if len(set(notes)) == 1 else ""
    cells = [
        TableCell(row, bool(row and best and shown(row["metric"], row["mean"]) == best[i]), "" if common else notes[i])
        for i, row in enumerate(rows)
    ]
    return TableLine(method, common, cells)


def best_shown(rows: Sequence[ComparisonRow | None]) -> str | None:
    """The best value of a column as it is shown, so that all that look the same are marked; None without a contest."""
    held = [row for row in rows if row]
    best = METRICS[held[0]["metric"]].best if len(held) > 1 else None
    return shown(held[0]["metric"], BEST[best](row["mean"] for row in held)) if best else None


def caption(view: Comparison, metrics: Sequence[str], variant: Any) -> list[str]:
    """What the table is, what it shows, and what it rests on."""
    where = "" if variant is None else f", {view.varies} {variant}"
    said = [f"{view.report['title']}{where}.", *view.report["captions"], *reading(view, metrics)]
    for metric in (m for m in metrics if m in view.right_metrics):
        said += standing(view, metric, variant) + differences(view, metric, variant)
        said += against_yardsticks(view, metric, variant) + against_position(view, metric, variant)
    return said + basis(view, metrics, [variant]) + failures(view)


def reading(view: Comparison, metrics: Sequence[str]) -> list[str]:
    """How to read the cells."""
    lowest = [METRICS[metric].label for metric in metrics if METRICS[metric].best == "lowest"]
    best = "Bold: the highest mean" + (f" (of {' and '.join(lowest)} the lowest)" if lowest else "")
    shares = ["Shares in %."] if any(METRICS[metric].is_share for metric in metrics) else []
    yardsticks = ["Below the rule: yardsticks, which train nothing."] if view.yardsticks else []
    return [*shares, f"{best}, significant or not.", *yardsticks]


def block_title(metric: str) -> str:
    return (METRICS[metric].title or METRICS[metric].label) + (" (%)" if METRICS[metric].is_share else "")


def has_block(metric: str) -> bool:
    """Whether a metric has a part of its own in the table of poles, and no column in that of means."""
    return METRICS[metric].is_right and METRICS[metric].has_poles


def titled(view: Comparison, what: str, variant: Any) -> str:
    return what.capitalize() + ("" if variant is None else f", {view.varies} {variant}")


def one_line(text: str) -> str:
    """A line's end would end a table's row, or its caption."""
    return re.sub(r"\s+", " ", text)
