"""Rungs of a trial: validation losses go to Ray Tune's scheduler, which may stop the trial."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.tune
from ray.train import UserCallback
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

from pft_core.objectives import SIDE_NAMES
from pipelines.tracking import SPOOL_NAME, StepMetrics, read_metrics

NUM_RUNGS = 4  # parts of a trial: it may be stopped after the first and the second; the last is its end
KEEP = 2  # one in this many trials continues past a rung
RUNG, RUNG_LOSS = "rung", "rung_loss"


@dataclass(frozen=True)
class RungReporter:
    """Reports the validation losses of one trial. every: steps between validations.

    The scheduler takes each rung of a trial once, so reporting a rung again after a resume does no harm.
    """

    every: int

    def report(self, row: StepMetrics) -> None:
        """Report a step's metrics if it is a rung. The call ends the thread if the scheduler stops the trial."""
        if self.is_rung(row):
            ray.tune.report(self.rung_report(row))

    def replay(self, run_dir: Path) -> None:
        """Report the rungs that an earlier start of the trial reached."""
        if (run_dir / SPOOL_NAME).is_file():
            for row in read_metrics(run_dir):
                self.report(row)

    def is_rung(self, row: StepMetrics) -> bool:
        return "val_loss" in row and 0 < row["step"] // self.every < NUM_RUNGS

    def rung_report(self, row: StepMetrics) -> dict[str, Any]:
        return {RUNG: row["step"] // self.every, RUNG_LOSS: worse_loss(row)}

    def losses(self, run_dir: Path) -> list[float]:
        """Return the loss at each rung that a trial has reached."""
        reports = [self.rung_report(row) for row in read_metrics(run_dir) if self.is_rung(row)]
        return list({row[RUNG]: row[RUNG_LOSS] for row in reports}.values())

    def callbacks(self) -> list[UserCallback]:
        """Return the callback that forwards the reports of Ray Train's workers to the scheduler."""
        return [_RungCallback(self)]


class _RungCallback(TuneReportCallback):
    def __init__(self, rungs: RungReporter):
        super().__init__()
        self._rungs = rungs

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if self._rungs.is_rung(metrics[0]):
            super().after_report(run_context, [self._rungs.rung_report(metrics[0])], None)


def worse_loss(row: StepMetrics) -> float:
    """Return the validation loss of the worse side, or the loss of an objective without sides."""
    return max((loss for name in SIDE_NAMES if (loss := side_loss(row, name)) is not None), default=row["val_loss"])


def side_loss(row: StepMetrics, name: str) -> float | None:
    """Return the mean over a side's terms; k_way has one per axis."""
    terms = [value for key, value in row.items() if key.startswith("val_") and key.endswith(f"loss_{name}")]
    return sum(terms) / len(terms) if terms else None


def scheduler() -> ASHAScheduler:
    """Return asynchronous successive halving (Li et al. 2020), which stops a trial worse than its rung's median."""
    return ASHAScheduler(
        time_attr=RUNG, metric=RUNG_LOSS, mode="min", grace_period=1, max_t=NUM_RUNGS, reduction_factor=KEEP
    )
