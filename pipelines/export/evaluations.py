"""Tables of a policy's evaluations for its card: one per data set, with the base model where a report has it."""

from collections.abc import Sequence
from dataclasses import dataclass

from pft_core.evaluation import METRICS, TASKS, YARDSTICKS, EvaluationRow
from pipelines.export.own_reports import OwnReport, RowsByPlace

SCORING = {
    None: "The choice is the likeliest answer.",
    "letter": "The choice is the likeliest letter.",
    "option": "The choice is the likeliest text of an option.",
    "generate": "The choice is read from a greedily generated reply.",
}


@dataclass(frozen=True)
class EvaluationTable:
    """The table of one data set.

    beside: titles of the columns that compare. lines: the cells of each row. meanings: a sentence for each metric.
    """

    data: str
    scoring: str
    beside: list[str]
    lines: list[list[str]]
    meanings: list[str]


def tables_of(reports: Sequence[OwnReport]) -> list[EvaluationTable]:
    """Return a table of each data set; the first of several reports of one counts."""
    first = {report.data: report for report in reversed(reports)}
    return [_table(report) for report in reports if first[report.data] is report]


def _table(report: OwnReport) -> EvaluationTable:
    lines = [[*_line(row), *(_value_at(row, rows) for rows in report.beside.values())] for row in report.rows]
    metrics = dict.fromkeys(row["metric"] for row in report.rows)
    meanings = [f"{METRICS[name].label}: {METRICS[name].meaning}." for name in metrics if name in METRICS]
    position = "Position: what always choosing the option at one place reaches."
    known = [YARDSTICKS[name] for name in YARDSTICKS]
    yardsticks = [f"{each.label}: {each.says}." for each in known if each.label in report.beside]
    return EvaluationTable(
        report.data, SCORING.get(report.scoring, ""), list(report.beside), lines, [*meanings, position, *yardsticks]
    )


def _line(row: EvaluationRow) -> list[str]:
    metric, baseline = row["metric"], row["position_baseline"]
    label = METRICS[metric].label if metric in METRICS else TASKS[metric].label if metric in TASKS else metric
    pole = f"{row['pole'] or 'both'}{' (not trained)' if row['trained_pole'] is False else ''}"
    value = f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
    return [label, row["axis"] or "all", pole, str(row["n"]), value, "" if baseline is None else f"{baseline:.2f}"]


def _value_at(row: EvaluationRow, rows: RowsByPlace) -> str:
    """Return the value of the same axis, pole and metric among other rows; empty if there is none."""
    other = rows.get((row["axis"], row["pole"], row["metric"]))
    return f"{other['value']:.2f}" if other else ""
