"""What a search has found: trials with their figures, the cells they answer, the front, and which ratio to take."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pft_core.evaluation import Outcome, front, hypervolume, knee, read_outcomes
from pft_core.files import read_json
from pipelines.config import SearchSettings
from pipelines.jobs import JOB_NAME
from pipelines.tracking import SPOOL_NAME
from pipelines.tune.figures import FIGURES, gaps, intervals_of
from pipelines.tune.points import combinations, grid_cells, log_ratio, share_of
from pipelines.tune.rungs import Rungs
from pipelines.tune.trial import Trial

Row = Mapping[str, Any]
ALL = ("all_first", "all_second")  # *All* of each pole
MEASURED = (*FIGURES, *ALL, "steps", "seconds", "items_rejected")
NOTHING_FOUND: Row = {**dict.fromkeys((*MEASURED, "low", "high")), "intervals": {}}


def trial_rows(trials: Sequence[Trial], errors: Mapping[str, str]) -> list[Row]:
    """One row a trial, in their order; errors: by the point's JSON. Its figures are None where it did not finish."""
    places = {trial.key: i for i, trial in enumerate(trials)}
    return [_trial_row(trial, errors.get(trial.point.to_json()), places) for trial in trials]


def _trial_row(trial: Trial, error: str | None, places: Mapping[str, int]) -> Row:
    point, path = trial.point, trial.run_dir / JOB_NAME
    job = read_json(path, what="the state of a trial") if path.is_file() else {}
    finished = job.get("status") == "finished"
    if not (finished or error or (job and trial.stops_early)):
        error = "it did not end"  # nothing else stops a trial that did not fail
    return {
        "alpha": point.alpha,
        "beta": point.beta,
        "t": log_ratio(point.alpha, point.beta),
        "source": point.source,
        "changes": dict(point.changes),
        "status": "finished" if finished else "failed" if error else "stopped",
        "error": None if finished else error,
        "run_id": trial.run_dir.name,
        "run_dir": str(trial.run_dir),
        "attempt": job.get("attempt"),
        "rung_losses": rung_losses(trial),
        "parents": [places[parent.key] for parent in trial.parents],
        "weights": list(point.weights),
        **(_figures(trial, job["result"]) if finished else NOTHING_FOUND),
    }


def _figures(trial: Trial, result: Row) -> Row:
    intervals = intervals_of(read_outcomes(Path(result["outcomes"])), form=trial.search.search.form)
    low, high = intervals["both_right"]
    return {name: result[name] for name in MEASURED} | {"low": low, "high": high, "intervals": intervals}


def rung_losses(trial: Trial) -> list[float]:
    if not trial.stops_early or not (trial.run_dir / SPOOL_NAME).is_file():
        return []
    return Rungs(trial.config.train.validate_every).losses(trial.run_dir)


def cells_of(search: SearchSettings, rows: Sequence[Row], *, is_grid: bool) -> Sequence[Row]:
    """Every cell of the grid with the trial that answers it; without a grid (optuna), a cell for each trial."""
    if not is_grid:
        return [cell(row, i, row["alpha"], row["beta"]) for i, row in enumerate(rows)]
    found = []
    for changes in combinations(search):
        answers = {_place(row): i for i, row in reversed(list(enumerate(rows))) if row["changes"] in (changes, {})}
        for alpha, beta in grid_cells(search):
            number = answers[share_of(alpha, beta) if alpha or beta else None]
            found.append({**cell(rows[number], number, alpha, beta), "changes": changes})
    return found


def _place(row: Row) -> float | None:
    return None if row["source"] == "base" else share_of(row["alpha"], row["beta"])


def cell(row: Row, number: int, alpha: float, beta: float) -> Row:
    is_itself = (row["alpha"], row["beta"]) == (alpha, beta)
    shown = {name: row[name] for name in (*FIGURES, *ALL, "low", "high", "intervals", "status", "changes")}
    source = row["source"] if is_itself or row["source"] != "trained" else "same_ratio"
    return {"alpha": alpha, "beta": beta, "t": log_ratio(alpha, beta), "source": source, "trial": number, **shown}


def candidates(rows: Sequence[Row]) -> list[int]:
    """The trials that can be picked: finished, and not the base."""
    return [i for i, row in enumerate(rows) if row["status"] == "finished" and row["source"] != "base"]


def pick(rows: Sequence[Row], metric: str) -> Row | None:
    """The trial that is best by the metric; ties by both-right, then by the worse pole, then the more balanced one."""
    order = (metric, "both_right", "worse_pole")
    held = candidates(rows)
    if not held:
        return None
    best = max(held, key=lambda i: (*(rows[i][name] for name in order), -abs(share_of(*_weights(rows[i])) - 0.5)))
    why = f"best by {metric.replace('_', ' ')}, ties by both right"
    return {"trial": best, **{name: rows[best][name] for name in ("alpha", "beta", "t", "source")}, "why": why}


def _weights(row: Row) -> tuple[float, float]:
    return row["alpha"], row["beta"]


def trade_off(rows: Sequence[Row]) -> Row:
    """The front of both poles' accuracy, the area it dominates above (0, 0), and its knee."""
    held = candidates(rows)
    points = [(rows[i]["pole_first"], rows[i]["pole_second"]) for i in held]
    bend = knee(points)
    return {
        "front": [held[i] for i in front(points)],
        "hypervolume": hypervolume(points) if points else None,
        "knee": None if bend is None else held[bend],
    }


def verification(trials: Sequence[Trial], rows: Sequence[Row]) -> Sequence[Row]:
    """Each soup whose ratio was trained too, held against that training on the same items."""
    trained = {_place(row): i for i, row in enumerate(rows) if row["source"] == "trained" and row["steps"]}
    found = []
    for number, row in enumerate(rows):
        other = trained.get(_place(row))
        if row["source"] == "soup" and row["status"] == "finished" and other is not None:
            soup, real = (_finished_outcomes(trials[i]) for i in (number, other))
            metric = gaps(soup, real, form=trials[number].search.search.form)
            found.append({"t": row["t"], "soup": number, "trained": other, "metric": metric})
    return found


def _finished_outcomes(trial: Trial) -> list[Outcome]:
    result = read_json(trial.run_dir / JOB_NAME, what="the state of a trial")["result"]
    return read_outcomes(Path(result["outcomes"]))
