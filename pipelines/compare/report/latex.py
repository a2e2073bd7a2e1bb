"""Tables of a comparison in LaTeX, for a document that loads booktabs and graphicx."""

import re
from collections.abc import Iterator, Sequence

from pipelines.compare.report.claims import BELOW, MISSING, PLUS_MINUS, REACHES, Comparison
from pipelines.compare.report.comparison_schema import ComparisonReport
from pipelines.compare.report.tables import Table, TableBlock, TableLine, one_line, tables_of

PREAMBLE = r"""% Needs booktabs and graphicx. To view the tables alone, compile this document beside them:
% \documentclass{article}
% \usepackage[a4paper,landscape,margin=15mm]{geometry}
% \usepackage{booktabs,graphicx}
% \begin{document}
% \input{tables}
% \end{document}
"""
# A table wider than the page is scaled down to fit; a narrower one keeps its size.
FIT = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the start of a line it would be read as an option of the line break before
    "]": "{]}",
    "*": "{*}",
    PLUS_MINUS: r"$\pm$",
    REACHES: r"\textdagger{}",
    BELOW: r"\textdaggerdbl{}",
    MISSING: "--",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


def latex(report: ComparisonReport) -> str:
    """Return all tables as floats, for a document that loads booktabs and graphicx."""
    view = Comparison(report)
    tables = tables_of(view)
    label = re.sub(r"[^a-z0-9]+", "-", str(report["suite"]).lower())
    labels = [f"tab:{label}-{table.name}-{number}" for number, table in enumerate(tables, start=1)]
    return "\n".join([PREAMBLE, *(_latex_table(table, at) for table, at in zip(tables, labels, strict=True))])


def _latex_table(table: Table, label: str) -> str:
    width = 1 + len(table.columns)
    body = [*_latex_head(table), r"\midrule"]
    for number, block in enumerate(table.blocks):
        if number:
            body.append(r"\midrule")
        body += _latex_block(block, width)
    lines = [
        r"\begin{table*}[tp]",
        r"\centering",
        rf"\caption{{{latex_text(' '.join(table.caption))}}}",
        rf"\label{{{label}}}",
        FIT,
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _latex_head(table: Table) -> Iterator[str]:
    groups, rules, start = [], [], 2
    for name, span in table.groups:
        groups.append(rf"\multicolumn{{{span}}}{{c}}{{{latex_text(name)}}}" if name else "")
        if name:
            rules.append(rf"\cmidrule(lr){{{start}-{start + span - 1}}}")
        start += span
    yield _latex_row(["", *groups])
    yield " ".join(rules)
    yield _latex_row(["Method", *(latex_text(column.name) for column in table.columns)])


def _latex_block(block: TableBlock, width: int) -> Iterator[str]:
    if block.title:
        yield rf"\multicolumn{{{width}}}{{l}}{{\textit{{{latex_text(block.title)}}}}} \\"
    yield from (_latex_line(line) for line in block.methods)
    if block.yardsticks:
        yield rf"\cmidrule(lr){{1-{width}}}"
    yield from (_latex_line(line) for line in block.yardsticks)


def _latex_line(line: TableLine) -> str:
    values = [
        (rf"\textbf{{{latex_text(cell.value)}}}" if cell.best else latex_text(cell.value)) + latex_text(cell.suffix)
        for cell in line.cells
    ]
    return _latex_row([latex_text(line.label), *values])


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def latex_text(text: str) -> str:
    """Escape everything that LaTeX would not read as plain text."""
    return "".join(LATEX.get(character, character) for character in one_line(text))
