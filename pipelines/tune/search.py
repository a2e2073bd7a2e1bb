"""Run trials with Ray Tune, as many at once as the cluster has room for, with or without early stopping."""

import contextlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.search import Searcher

from pft_core.training import Advance
from pipelines.config import RunConfig
from pipelines.console import console
from pipelines.jobs import num_parallel, unwrap_user_error
from pipelines.progress import receiving, relayed, stage
from pipelines.tracking import DRAIN_LIMIT_S
from pipelines.tune import rungs
from pipelines.tune.search_points import SearchPoint
from pipelines.tune.search_schema import FIGURES
from pipelines.tune.searchers import point_of
from pipelines.tune.trial import Result, Trial, run_trial

DRIVER = {"CPU": 0.01}  # for a trial whose training runs elsewhere; Ray Train requests its workers itself
TUNE_FOLDER = "ray_tune"
STOP_LIMIT_S = int(2 * DRAIN_LIMIT_S)
MAX_FAILURES = 3  # a node may die; a restarted trial resumes


def trial_resources(config: RunConfig) -> dict[str, float]:
    """Return the resources of one trial: a warm process, or the workers of Ray Train."""
    if config.search.trials == "warm":
        return {"CPU": 1.0} | ({"GPU": 1.0} if config.scaling.use_gpu else {})
    return {name: amount * config.scaling.num_workers for name, amount in config.scaling.worker_resources.items()}


def trials_at_once(config: RunConfig) -> int:
    """Return how many trials fit at once. Raises UserError if one needs more than the cluster has."""
    return num_parallel(trial_resources(config), what="a trial")


def search(
    config: RunConfig, searcher: Searcher, *, num_trials: int, folder: Path, stops_early: bool = False
) -> dict[str, str]:
    """Run the searcher's points to their end; return errors by the point's JSON."""
    with receiving() as relay, stage("tune", num_trials) as advance:
        tuner = make_tuner(
            config,
            searcher,
            Progress(num_trials, advance),
            relay,
            num_trials=num_trials,
            folder=folder,
            stops_early=stops_early,
        )
        with contextlib.redirect_stdout(io.StringIO()):  # Tune prints its settings at any verbosity
            results = tuner.fit()
    return {point_of(result.config).to_json(): error_line(result.error) for result in results if result.error}


def make_tuner(
    config: RunConfig,
    searcher: Searcher,
    progress: "Progress",
    relay: Any,
    *,
    num_trials: int,
    folder: Path,
    stops_early: bool,
) -> ray.tune.Tuner:
    """Return a tuner that runs `num_trials` points, whose workers report to the relay."""
    quiet_tune()
    is_warm = config.search.trials == "warm"

    def trainable(trial_config: dict[str, Any]) -> None:
        # A stopped trial first uploads its metrics; Tune would wait 2 s for that, and then fail the next trial.
        os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(STOP_LIMIT_S)
        trial = Trial(config, point_of(trial_config), stops_early)
        with relayed(relay, name_of(trial.point)):
            result = run_trial(trial)
        ray.tune.report(last_report(result))

    return ray.tune.Tuner(
        ray.tune.with_resources(trainable, trial_resources(config) if is_warm else DRIVER),
        tune_config=ray.tune.TuneConfig(
            search_alg=searcher,
            scheduler=rungs.scheduler() if stops_early else None,
            num_samples=num_trials,
            max_concurrent_trials=trials_at_once(config),
            reuse_actors=is_warm,
        ),
        run_config=ray.tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=str(folder),
            failure_config=ray.tune.FailureConfig(max_failures=MAX_FAILURES),
            verbose=0,
            callbacks=[progress],
        ),
    )


def quiet_tune() -> None:
    """Turn off Tune's own log files and warnings; every trial stores its metrics itself."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's handler would end the search as if it were done
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial's traceback is in Ray's log


def last_report(result: Result) -> dict[str, Any]:
    """Return a trial's final report to searcher and scheduler, at the last rung, where nothing is stopped."""
    loss = (result["rung_losses"] or [0.0])[-1]
    return {rungs.RUNG: rungs.NUM_RUNGS, rungs.RUNG_LOSS: loss, **{name: result[name] for name in FIGURES}}


def error_line(error: Exception) -> str:
    mistake = unwrap_user_error(error)
    text = str(mistake or error).strip() or type(error).__name__
    return text if mistake else text.splitlines()[-1]


class Progress(ray.tune.Callback):
    """Prints a line for every trial that has ended."""

    def __init__(self, num_trials: int, advance: Advance):
        self._num_trials = self._left = num_trials
        self._advance = advance

    def __getstate__(self) -> dict[str, Any]:
        """Leave the bar of this process out of the state that Tune saves."""
        return self.__dict__ | {"_advance": None}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        last = trial.last_result or {}
        figures = ", ".join(f"{name} {last[name]:.3f}" for name in FIGURES if last.get(name) is not None)
        self._print(trial, figures or f"stopped at rung {last.get(rungs.RUNG)}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._print(trial, "failed")

    def _print(self, trial: Any, outcome: str) -> None:
        self._left -= 1
        name = name_of(point_of(trial.config))
        console.print(f"{name}: {outcome} ({self._left} to go)", highlight=False, soft_wrap=True)
        self._advance(self._num_trials - self._left)


def name_of(point: SearchPoint) -> str:
    return "base" if point.source == "base" else f"{point.source} {point.ratio}"
