"""The key figures of a run: from its result, the end of its metrics, or the rows of its report."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pft_core.evaluation import YARDSTICKS
from pft_core.files import read_json
from pipelines.reporting import REPORT_NAMES
from pipelines.runs.damage import naming
from pipelines.tracking import SPOOL_NAME

TAIL_BYTES = 16_384  # of the metrics: some tens of steps, so that hundreds of runs are read in a moment
SIDES = ("loss_first", "loss_second")
LAST = ("loss", *SIDES, "val_loss", "val_loss_first", "val_loss_second", "pairs_per_s", "tokens_per_s")
OF_RESULT = ("steps", "pairs", "resumed_from", "alpha", "beta", "failed", "both_right", "pole_first", "pole_second")
OF_ITEMS = ("one", "all", "both_right", "flip", "leak")  # metrics of a report, averaged over axes


def figures_of_job(run_dir: Path, kind: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a run with a job.json. Steps and losses are the last ones, also of an unfinished run."""
    with naming(run_dir / SPOOL_NAME):
        last = last_metrics(run_dir / SPOOL_NAME)
    figures = {"steps": last["step"]} if _is_training(last) else {}
    figures |= {name: last[name] for name in LAST if name in last}
    figures |= {name: result[name] for name in OF_RESULT if result.get(name) is not None}
    report = run_dir / REPORT_NAMES[0]
    if kind == "quickstart" and report.is_file():
        with naming(report):
            figures |= figures_of_report(read_json(report, what="the report of a run"))
    return figures


def last_metrics(spool: Path) -> dict[str, Any]:
    """Return the last value of each metric, and the last step that trained; {} without metrics."""
    last: dict[str, Any] = {}
    for row in _tail(spool):
        step = row["step"] if _is_training(row) else last.get("step", row["step"])
        last |= row | {"step": step}
    return last


def _is_training(row: Mapping[str, Any]) -> bool:
    """Return whether metrics have a training loss; those of an evaluation are logged as one more step."""
    return any(name in row for name in ("loss", *SIDES))


def _tail(path: Path) -> list[dict[str, Any]]:
    """Return the last rows of a file of JSON lines; the first and the last line may be cut off."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        at = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
        file.seek(at)
        lines = file.read().split(b"\n")[1 if at else 0 : -1]
    return [json.loads(line) for line in lines]


def mean_loss(figures: Mapping[str, Any]) -> float | None:
    """Return the last training loss, the mean over the sides if the objective has two; None before the first step."""
    losses = [figures[name] for name in ("loss", *SIDES) if name in figures]
    return sum(losses) / len(losses) if losses else None


def figures_of_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a report without its yardsticks: a number if it has one policy, else one for each policy or
    method. Of a report of several data sets, those of the first: their mean would be a figure of none."""
    parts = [row.get("part") for row in report["rows"]]
    rows = [row for row in report["rows"] if row.get("part") == parts[0]]
    return {name: value for name in OF_ITEMS if (value := _by_policy(rows, name)) is not None}


def _by_policy(rows: Sequence[Mapping[str, Any]], metric: str) -> float | dict[str, float] | None:
    chosen = [row for row in rows if row["metric"] == metric]
    yardsticks = {*YARDSTICKS, *(YARDSTICKS[name].label for name in YARDSTICKS)}
    named = dict.fromkeys(str(row.get("policy", row.get("method"))) for row in chosen)
    policies = [policy for policy in named if policy not in yardsticks]
    means = {
        policy: _mean([row for row in chosen if policy in (row.get("policy"), row.get("method"))])
        for policy in policies
    }
    return next(iter(means.values())) if len(means) == 1 else means or None


def _mean(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean over axes and poles, weighted by items; a comparison's own mean over axes if it has one."""
    whole = [row for row in rows if row["axis"] is None] or list(rows)
    weights = [row.get("n") or row.get("n_items") or 1 for row in whole]
    values = [row["value"] if "value" in row else row["mean"] for row in whole]
    return float(sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights))
