"""Outputs of a search: its report, a recipe for the picked ratio, and policies in the model registry."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from pft_core.data import DatasetManifest
from pft_core.errors import UserError
from pft_core.files import read_json, write_json, write_text
from pipelines.config import RunConfig, config_with_changes
from pipelines.console import console
from pipelines.embedded_data import TOYWORLD
from pipelines.jobs import JOB_NAME, code_digest
from pipelines.tracking import Tracker, close_killed, commit, register
from pipelines.train import cautions_of, resolve
from pipelines.tune import captions, conclusions
from pipelines.tune.search_report import write_search
from pipelines.tune.search_schema import FIGURES, Findings, Mode, PublishedSearch, SearchReport, TrialRow
from pipelines.tune.trial import Trial
from pipelines.validated_yaml import dump_yaml

CHOSEN_NAME = "chosen.yaml"
CHAMPION = "champion"  # alias of the picked policy
ENDS = ("middle", "second", "first")  # aliases of the policies that soups are mixed from, in the order of the trials
Result = dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """The trials of a search, its errors by the point's JSON, and its timings in seconds by part."""

    trials: list[Trial]
    errors: dict[str, str]
    timings: dict[str, float]


class TrialsFailed(RuntimeError):
    """Raised if some trials of a search failed; the report covers the others. result: the search's return value."""

    def __init__(self, result: Result):
        super().__init__(f"{result['failed']} trials failed: see the warnings in {result['report_json']}")
        self.result = result


def publish(config: RunConfig, search_result: SearchResult, mode: Mode, run_dir: Path, tracker: Tracker) -> Result:
    """Write the report and the recipe, and register the picked policy.

    Raises UserError if no trial has finished, and TrialsFailed if some have failed.
    """
    report = assemble(config, search_result, mode)
    pick = report["pick"]
    if pick is None:
        raise UserError(f"no trial has finished: {'; '.join(report['warnings'])}")
    for trial, row in zip(search_result.trials, report["trials"], strict=True):
        if row["status"] == "stopped":
            mark_stopped(trial)
    best = report["trials"][pick["trial"]]
    recipe = write_recipe(config, best, report["sentences"][0], run_dir)
    published: PublishedSearch = {
        **report,
        "recipe": recipe.name,
        "model": register_policies(config, search_result, mode, report["trials"], pick["trial"]),
    }
    paths = write_search(published, run_dir)
    metrics = figures_of_trial(best) | {"hypervolume": report["hypervolume"]}
    tracker.log(0, {name: value for name, value in metrics.items() if value is not None})
    for path in (recipe, *paths.values()):
        tracker.artifact(path)
    for sentence in [*report["sentences"], *report["warnings"]]:
        console.print(sentence, highlight=False, soft_wrap=True)
    result = {
        "run_dir": str(run_dir),
        "report_json": str(paths["report_json"]),
        "report_html": str(paths["report_html"]),
        "recipe": str(recipe),
        "model": published["model"],
        "alpha": pick["alpha"],
        "beta": pick["beta"],
        "failed": sum(row["status"] == "failed" for row in report["trials"]),
    }
    if result["failed"]:
        raise TrialsFailed(result)
    return result


def mark_stopped(trial: Trial) -> None:
    """Record that a trial was stopped early, which its own process had no time to do."""
    path = trial.run_dir / JOB_NAME
    write_json(path, read_json(path, what="the state of a trial") | {"status": "stopped"})
    with contextlib.suppress(MlflowException):  # an unreachable server keeps its last state of the run
        close_killed(trial.search, trial.key)


def assemble(config: RunConfig, search_result: SearchResult, mode: Mode) -> SearchReport:
    """Assemble the report, without the recipe and the registered model."""
    rows = conclusions.trial_rows(search_result.trials, search_result.errors)
    findings: Findings = {
        "pick": conclusions.pick(rows, config.search.metric),
        "verification": conclusions.verification(search_result.trials, rows),
        **conclusions.trade_off(rows),
    }
    shared = search_result.trials[0].search
    manifests = {
        name: DatasetManifest.load(Path(str(folder)))
        for name, folder in (("data", shared.data), ("validation_data", shared.validation_data))
    }
    return {
        "title": f"Search of {config.name}: the ratio of alpha to beta",
        "mode": mode,
        "name": config.name,
        "metric": config.search.metric,
        "form": config.search.form,
        "axes": [
            {"name": axis.name, "first": axis.poles[0].name, "second": axis.poles[1].name}
            for axis in manifests["validation_data"].space.axes
        ],
        "cells": conclusions.cells_of(config.search, rows, is_grid=mode != "optuna"),
        "trials": rows,
        **findings,
        "sentences": captions.sentences(rows, findings),
        "warnings": [*cautions_of(resolve(shared)), *captions.warnings(rows, findings["verification"])],
        "notes": captions.notes(mode=mode, is_embedded=config.data == TOYWORLD),
        "timings": search_result.timings,
        "config": config.model_dump(),
        "digests": {
            **{name: manifest.data_digest for name, manifest in manifests.items()},
            "code": code_digest(),
            "commit": commit() or "",
        },
    }


def figures_of_trial(best: TrialRow) -> dict[str, float | None]:
    return {name: best[name] for name in FIGURES}


def write_recipe(config: RunConfig, row: TrialRow, why: str, run_dir: Path) -> Path:
    """Write the recipe that trains the picked ratio. why: the sentence in its first line."""
    weights = {"train.alpha": row["alpha"], "train.beta": row["beta"], "name": f"{config.name}-chosen"}
    chosen = config_with_changes(
        config.model_dump(exclude={"search"}), [row["changes"], weights], source="search.space"
    )
    path = run_dir / CHOSEN_NAME
    head = f"# {why}\n"
    if row["source"] == "soup":
        head += "# The picked policy is a soup; this recipe trains its ratio, which gives a different policy.\n"
    write_text(path, head + dump_yaml(chosen.model_dump(exclude={"search"})))
    return path


def register_policies(
    config: RunConfig, search_result: SearchResult, mode: Mode, rows: Sequence[TrialRow], picked: int
) -> str | None:
    """Register the picked policy and the parents of soups; a registry that refuses is only a warning."""
    aliases = {picked: [CHAMPION]}
    for number, alias in enumerate(ENDS if mode == "soup" else ()):
        if rows[number]["status"] == "finished":
            aliases.setdefault(number, []).append(alias)
    try:
        for number, names in aliases.items():
            trial = search_result.trials[number]
            tags = {"alpha": f"{trial.point.alpha:g}", "beta": f"{trial.point.beta:g}", "run_dir": str(trial.run_dir)}
            register(trial.search, trial.key, name=config.name, aliases=names, tags=tags)
    except UserError as error:
        console.print(str(error), style="yellow", highlight=False)
        return None
    return f"{config.name}@{CHAMPION}"
