"""Tables of a comparison, in the layout of the PFT paper's Tables 2 and 3; `markdown` and `latex` write them.

Rows are methods, columns are axes with their poles and an average, blocks are One and All; yardsticks stand below a
rule. Everything is computed from the report.
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
    format_value,
    method_label,
    position_mark,
    ranking,
    spread,
)
from pipelines.compare.statistics import AREA, ComparisonRow

BEST = {"highest": max, "lowest": min}


@dataclass(frozen=True)
class Column:
    """The contents of a column. group: the heading that it shares with its neighbors."""

    group: str
    name: str
    metric: str | None  # None: the metric of the block
    axis: str | None
    pole: str | None
    variant: Any


@dataclass(frozen=True)
class TableCell:
    """A cell. row: None if there is no number. note: its number of seeds, unless the line gives it."""

    row: ComparisonRow | None
    best: bool = False
    note: str = ""

    @property
    def value(self) -> str:
        return format_value(self.row["metric"], self.row["mean"]) if self.row else MISSING

    @property
    def suffix(self) -> str:
        """Return the text after the value: standard deviation, number of seeds, mark."""
        if self.row is None:
            return ""
        deviation = f" {PLUS_MINUS} {spread(self.row)}" if spread(self.row) else ""
        return deviation + (f" ({self.note})" if self.note else "") + position_mark(self.row)


@dataclass(frozen=True)
class TableLine:
    """The line of one method. note: its number of seeds, if it differs from the others'."""

    method: str
    note: str
    cells: list[TableCell]

    @property
    def label(self) -> str:
        return method_label(self.method) + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class TableBlock:
    """The lines of one metric. title: empty if the table has a single block."""

    title: str
    methods: list[TableLine]
    yardsticks: list[TableLine]


@dataclass(frozen=True)
class Table:
    """A table. name: the part of its label. caption: sentences."""

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
        """Return the shared headings with the number of columns below each."""
        groups: list[tuple[str, int]] = []
        for column in self.columns:
            if groups and groups[-1][0] == column.group:
                groups[-1] = (column.group, groups[-1][1] + 1)
            else:
                groups.append((column.group, 1))
        return groups


def tables_of(view: Comparison) -> list[Table]:
    """Return the tables across variants, if any, then for each variant the tables by pole and by metric."""
    tables = [across_variants(view), area(view)] if len(view.variants) > 1 else []
    for variant in view.variants:
        tables += [by_pole(view, variant), by_metric(view, variant)]
    return [table for table in tables if not table.is_empty]


def by_pole(view: Comparison, variant: Any) -> Table:
    """Make the paper's table: columns by axis and pole with an average, one block each for One and All."""
    rows = [row for row in view.of_variant(variant) if has_block(row["metric"])]
    poles = dict.fromkeys((row["axis"], row["pole"]) for row in rows)
    places = [(axis, pole) for axis, pole in poles if axis is not None and pole is not None]
    columns = [Column(axis, pole, None, axis, pole, variant) for axis, pole in places]
    columns.append(Column("", "Average", None, None, None, variant))
    metrics = [metric for metric in view.metrics if any(row["metric"] == metric for row in rows)]
    blocks = [TableBlock(block_title(m), *lines_of(view, columns, m)) for m in metrics]
    return Table("poles", table_title(view, "each pole", variant), columns, blocks, caption(view, metrics, variant))


def by_metric(view: Comparison, variant: Any) -> Table:
    """Make the table of the other metrics, one column each, as means over axes."""
    rows = [row for row in view.of_variant(variant) if row["axis"] is None and not has_block(row["metric"])]
    metrics = [metric for metric in view.metrics if any(row["metric"] == metric for row in rows)]
    columns = [Column("Mean over axes", METRICS[m].label, m, None, None, variant) for m in metrics]
    blocks = [TableBlock("", *lines_of(view, columns, None))]
    return Table(
        "metrics", table_title(view, "means over axes", variant), columns, blocks, caption(view, metrics, variant)
    )


def across_variants(view: Comparison) -> Table:
    """Make the table of means over axes, with one column per variant."""
    columns = [Column(view.varies, str(variant), None, None, None, variant) for variant in view.variants]
    metrics = [m for m in view.metrics if m != AREA and any(_is_mean(row, m) for row in view.rows)]
    blocks = [TableBlock(block_title(metric), *lines_of(view, columns, metric)) for metric in metrics]
    sentences = [f"{view.report['title']}: means over axes by {view.varies}.", *how_to_read(view, metrics)]
    return Table("variants", f"Means over axes by {view.varies}", columns, blocks, sentences + _notes(view, metrics))


def area(view: Comparison) -> Table:
    """Make the table of the area under the curve over the variants."""
    columns = [Column(f"By {view.varies}", METRICS[AREA].label, AREA, None, None, None)]
    blocks = [TableBlock("", *lines_of(view, columns, AREA))] if AREA in view.metrics else []
    sentences = [
        f"{view.report['title']}: mean both right from {view.varies} {view.variants[0]} to {view.variants[-1]}, "
        "by the trapezoid rule.",
        *ranking(view, AREA, None),
        *differences(view, AREA, None),
    ]
    return Table("area", f"Area under both right, by {view.varies}", columns, blocks, sentences + _notes(view, [AREA]))


def _is_mean(row: ComparisonRow, metric: str) -> bool:
    return row["metric"] == metric and row["axis"] is None


def _notes(view: Comparison, metrics: Sequence[str]) -> list[str]:
    return [*view.report["captions"], *basis(view, metrics, view.variants), *failures(view)]


def lines_of(
    view: Comparison, columns: Sequence[Column], metric: str | None
) -> tuple[list[TableLine], list[TableLine]]:
    """Return the lines of the methods, with the best of each column marked, and those of the yardsticks."""
    rows = {
        method: [view.row(method, c.metric or str(metric), c.axis, c.pole, c.variant) for c in columns]
        for method in view.methods
    }
    best = [best_shown([rows[method][i] for method in view.opponents]) for i in range(len(columns))]
    methods = [line_of(view, method, columns, rows[method], best) for method in view.opponents]
    yardsticks = [line_of(view, method, columns, rows[method], []) for method in view.yardsticks]
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
        TableCell(
            row, bool(row and best and format_value(row["metric"], row["mean"]) == best[i]), "" if common else notes[i]
        )
        for i, row in enumerate(rows)
    ]
    return TableLine(method, common, cells)


def best_shown(rows: Sequence[ComparisonRow | None]) -> str | None:
    """Return a column's best value as formatted, so that all equal-looking ones are marked; None without a contest."""
    present = [row for row in rows if row]
    best = METRICS[present[0]["metric"]].best if len(present) > 1 else None
    return format_value(present[0]["metric"], BEST[best](row["mean"] for row in present)) if best else None


def caption(view: Comparison, metrics: Sequence[str], variant: Any) -> list[str]:
    """Return the caption of a table: its title, its findings, and what the numbers rest on."""
    where = "" if variant is None else f", {view.varies} {variant}"
    sentences = [f"{view.report['title']}{where}.", *view.report["captions"], *how_to_read(view, metrics)]
    for metric in (m for m in metrics if m in view.right_metrics):
        sentences += ranking(view, metric, variant) + differences(view, metric, variant)
        sentences += against_yardsticks(view, metric, variant) + against_position(view, metric, variant)
    return sentences + basis(view, metrics, [variant]) + failures(view)


def how_to_read(view: Comparison, metrics: Sequence[str]) -> list[str]:
    """Say how to read the cells."""
    lowest = [METRICS[metric].label for metric in metrics if METRICS[metric].best == "lowest"]
    best = "Bold: the highest mean" + (f" (for {' and '.join(lowest)}, the lowest)" if lowest else "")
    shares = ["Shares in %."] if any(METRICS[metric].is_share for metric in metrics) else []
    yardsticks = ["Below the rule: yardsticks, which need no policy."] if view.yardsticks else []
    return [*shares, f"{best}, significant or not.", *yardsticks]


def block_title(metric: str) -> str:
    return (METRICS[metric].title or METRICS[metric].label) + (" (%)" if METRICS[metric].is_share else "")


def has_block(metric: str) -> bool:
    """Return whether a metric has its own block in the table by pole, and so no column in the one by metric."""
    return METRICS[metric].is_right and METRICS[metric].has_poles


def table_title(view: Comparison, what: str, variant: Any) -> str:
    return what.capitalize() + ("" if variant is None else f", {view.varies} {variant}")


def one_line(text: str) -> str:
    """Join a text into one line, since a line break would end a table row or a caption."""
    return re.sub(r"\s+", " ", text)
