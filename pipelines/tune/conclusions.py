"""Conclusions of a search: trials with figures, the cells they stand for, the front, and the ratio to pick."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pft_core.evaluation import Outcome, front, hypervolume, knee, read_outcomes
from pft_core.files import read_json
from pipelines.config import SearchSettings
from pipelines.jobs import JOB_NAME
from pipelines.tracking import SPOOL_NAME
from pipelines.tune.figures import gaps, intervals_of
from pipelines.tune.rungs import RungReporter
from pipelines.tune.search_points import SearchPoint, combinations, grid_cells, log_ratio, share_of
from pipelines.tune.search_schema import (
    FigureName,
    GridCell,
    MeasuredFigures,
    MeasuredTrial,
    PickedTrial,
    TradeOff,
    TrialRow,
    TrialRun,
    TriedPoint,
    UnmeasuredFigures,
    Verification,
)
from pipelines.tune.trial import Trial

NO_FIGURES: UnmeasuredFigures = {
    "pole_first": None,
    "pole_second": None,
    "worse_pole": None,
    "both_right": None,
    "all_first": None,
    "all_second": None,
    "steps": None,
    "seconds": None,
    "items_rejected": None,
    "low": None,
    "high": None,
    "intervals": {},
}


def trial_rows(trials: Sequence[Trial], errors: Mapping[str, str]) -> list[TrialRow]:
    """Make one row per trial, in order; figures of unfinished trials are None. errors: by the point's JSON."""
    places = {trial.key: i for i, trial in enumerate(trials)}
    return [_trial_row(trial, errors.get(trial.point.to_json()), places) for trial in trials]


def _trial_row(trial: Trial, error: str | None, places: Mapping[str, int]) -> TrialRow:
    path = trial.run_dir / JOB_NAME
    job = read_json(path, what="the state of a trial") if path.is_file() else {}
    point, run = _point_keys(trial.point), _run(trial, job.get("attempt"), places)
    if job.get("status") == "finished":
        return {**point, "status": "finished", "error": None, **run, **_figures(trial, job["result"])}
    if not error and not (job and trial.stops_early):
        error = "it did not finish"  # only early stopping ends a trial that did not fail
    return {**point, "status": "failed" if error else "stopped", "error": error, **run, **NO_FIGURES}


def _point_keys(point: SearchPoint) -> TriedPoint:
    return {
        "alpha": point.alpha,
        "beta": point.beta,
        "t": log_ratio(point.alpha, point.beta),
        "source": point.source,
        "changes": dict(point.changes),
    }


def _run(trial: Trial, attempt: int | None, places: Mapping[str, int]) -> TrialRun:
    return {
        "run_id": trial.run_dir.name,
        "run_dir": str(trial.run_dir),
        "attempt": attempt,
        "rung_losses": rung_losses(trial),
        "parents": [places[parent.key] for parent in trial.parents],
        "weights": list(trial.point.weights),
    }


def _figures(trial: Trial, result: Mapping[str, Any]) -> MeasuredFigures:
    intervals = intervals_of(read_outcomes(Path(result["outcomes"])), form=trial.search.search.form)
    low, high = intervals["both_right"]
    return {
        "pole_first": result["pole_first"],
        "pole_second": result["pole_second"],
        "worse_pole": result["worse_pole"],
        "both_right": result["both_right"],
        "all_first": result["all_first"],
        "all_second": result["all_second"],
        "steps": result["steps"],
        "seconds": result["seconds"],
        "items_rejected": result["items_rejected"],
        "low": low,
        "high": high,
        "intervals": intervals,
    }


def rung_losses(trial: Trial) -> list[float]:
    if not trial.stops_early or not (trial.run_dir / SPOOL_NAME).is_file():
        return []
    return RungReporter(trial.config.train.validate_every).losses(trial.run_dir)


def cells_of(search: SearchSettings, rows: Sequence[TrialRow], *, is_grid: bool) -> list[GridCell]:
    """Return each cell of the grid with the trial that stands for it; without a grid (optuna), one cell per trial."""
    if not is_grid:
        return [cell(row, i, row["alpha"], row["beta"]) for i, row in enumerate(rows)]
    cells: list[GridCell] = []
    for changes in combinations(search):
        answers = {_place(row): i for i, row in reversed(list(enumerate(rows))) if row["changes"] in (changes, {})}
        for alpha, beta in grid_cells(search):
            number = answers[share_of(alpha, beta) if alpha or beta else None]
            cells.append({**cell(rows[number], number, alpha, beta), "changes": changes})
    return cells


def _place(row: TrialRow) -> float | None:
    return None if row["source"] == "base" else share_of(row["alpha"], row["beta"])


def cell(row: TrialRow, number: int, alpha: float, beta: float) -> GridCell:
    is_itself = (row["alpha"], row["beta"]) == (alpha, beta)
    return {
        "alpha": alpha,
        "beta": beta,
        "t": log_ratio(alpha, beta),
        "source": row["source"] if is_itself or row["source"] != "trained" else "same_ratio",
        "trial": number,
        "pole_first": row["pole_first"],
        "pole_second": row["pole_second"],
        "worse_pole": row["worse_pole"],
        "both_right": row["both_right"],
        "all_first": row["all_first"],
        "all_second": row["all_second"],
        "low": row["low"],
        "high": row["high"],
        "intervals": row["intervals"],
        "status": row["status"],
        "changes": row["changes"],
    }


def candidates(rows: Sequence[TrialRow]) -> dict[int, MeasuredTrial]:
    """Return the trials that can be picked, by number: finished ones, except the base."""
    return {i: row for i, row in enumerate(rows) if row["status"] == "finished" and row["source"] != "base"}


def pick(rows: Sequence[TrialRow], metric: FigureName) -> PickedTrial | None:
    """Pick the best trial by the metric; break ties by both right, then the worse pole, then balance."""
    trials = candidates(rows)
    if not trials:
        return None
    number = max(trials, key=lambda i: _rank(trials[i], metric))
    best = trials[number]
    return {
        "trial": number,
        "alpha": best["alpha"],
        "beta": best["beta"],
        "t": best["t"],
        "source": best["source"],
        "why": f"best {metric.replace('_', ' ')}, ties broken by both right",
    }


def _rank(row: MeasuredTrial, metric: FigureName) -> tuple[float, ...]:
    return row[metric], row["both_right"], row["worse_pole"], -abs(share_of(row["alpha"], row["beta"]) - 0.5)


def trade_off(rows: Sequence[TrialRow]) -> TradeOff:
    """Compute the front of both poles' accuracy, the area it dominates above (0, 0), and its knee."""
    trials = candidates(rows)
    numbers = list(trials)
    points = [(row["pole_first"], row["pole_second"]) for row in trials.values()]
    bend = knee(points)
    return {
        "front": [numbers[i] for i in front(points)],
        "hypervolume": hypervolume(points) if points else None,
        "knee": None if bend is None else numbers[bend],
    }


def verification(trials: Sequence[Trial], rows: Sequence[TrialRow]) -> list[Verification]:
    """Compare each soup whose ratio was also trained with that training, on the same items."""
    trained = {_place(row): i for i, row in enumerate(rows) if row["source"] == "trained" and row["steps"]}
    lines: list[Verification] = []
    for number, row in enumerate(rows):
        other = trained.get(_place(row))
        if row["source"] == "soup" and row["status"] == "finished" and other is not None:
            soup, real = (_finished_outcomes(trials[i]) for i in (number, other))
            metric = gaps(soup, real, form=trials[number].search.search.form)
            lines.append({"t": row["t"], "soup": number, "trained": other, "metric": metric})
    return lines


def _finished_outcomes(trial: Trial) -> list[Outcome]:
    result = read_json(trial.run_dir / JOB_NAME, what="the state of a trial")["result"]
    return read_outcomes(Path(result["outcomes"]))
