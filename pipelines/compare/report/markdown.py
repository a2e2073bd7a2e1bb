"""Tables of a comparison in Markdown."""

import re

from pipelines.compare.report.claims import Comparison
from pipelines.compare.report.comparison_schema import ComparisonReport
from pipelines.compare.report.tables import Table, TableBlock, TableLine, one_line, tables_of


def markdown(report: ComparisonReport) -> str:
    """Return all tables, each followed by its caption."""
    view = Comparison(report)
    parts = [f"# {markdown_text(str(report['title']))}\n"]
    for table in tables_of(view):
        parts.append(f"## {markdown_text(table.title)}\n")
        parts += [f"{_markdown_block(table, block)}\n" for block in table.blocks]
        parts.append(markdown_text(" ".join(table.caption)) + "\n")
    return "\n".join(parts)


def _markdown_block(table: Table, block: TableBlock) -> str:
    names = [f"{c.group}: {c.name}" if c.axis is not None else c.name for c in table.columns]
    head = [block.title or "Method", *names]
    lines = [[markdown_text(text) for text in head], ["---", *(["---:"] * len(names))]]
    lines += [_markdown_line(line) for line in block.methods]
    if block.yardsticks:
        lines.append(["*yardsticks*", *[""] * len(names)])
    lines += [_markdown_line(line) for line in block.yardsticks]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _markdown_line(line: TableLine) -> list[str]:
    values = [
        (f"**{markdown_text(cell.value)}**" if cell.best else markdown_text(cell.value)) + markdown_text(cell.suffix)
        for cell in line.cells
    ]
    return [markdown_text(line.label), *values]


def markdown_text(text: str) -> str:
    """Escape everything that Markdown, or the HTML in it, would not read as plain text."""
    text = re.sub(r"([\\`*_{}\[\]<>|~$#])", r"\\\1", one_line(text))
    return text.replace("&", "&amp;")
