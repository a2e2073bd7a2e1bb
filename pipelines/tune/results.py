"""What a search leaves behind: its report, a recipe for the picked ratio, and policies in the model registry."""

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
CHAMPION = "champion"  # the alias of the picked policy
ENDS = ("middle", "second", "first")  # aliases of what soups are mixed from: the middle, and most of either side
Result = dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """What a search has tried: its trials, what went wrong by the point's JSON, and seconds by part."""

    trials: list[Trial]
    errors: dict[str, str]
    timings: dict[str, float]


class TrialsFailed(RuntimeError):
    """Some trials of a search failed; the others are reported. result: what the search returns."""

    def __init__(self, result: Result):
        super().__init__(f"{result['failed']} trials failed: see the warnings of {result['report_json']}")
        self.result = result


def publish(config: RunConfig, found: SearchResult, mode: Mode, run_dir: Path, tracker: Tracker) -> Result:
    """Write report and recipe, register the picked policy. Raises UserError where no trial has finished, TrialsFailed
    where some have not."""
    report = assemble(config, found, mode)
    chosen = report["pick"]
    if chosen is None:
        raise UserError(f"no trial has finished: {'; '.join(report['warnings'])}")
    for trial, row in zip(found.trials, report["trials"], strict=True):
        if row["status"] == "stopped":
            settle(trial)
    best = report["trials"][chosen["trial"]]
    recipe = write_recipe(config, best, report["sentences"][0], run_dir)
    published: PublishedSearch = {
        **report,
        "recipe": recipe.name,
        "model": registered(config, found, mode, report["trials"], chosen["trial"]),
    }
    paths = write_search(published, run_dir)
    told = headline(best) | {"hypervolume": report["hypervolume"]}
    tracker.log(0, {name: value for name, value in told.items() if value is not None})
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
        "alpha": chosen["alpha"],
        "beta": chosen["beta"],
        "failed": sum(row["status"] == "failed" for row in report["trials"]),
    }
    if result["failed"]:
        raise TrialsFailed(result)
    return result


def settle(trial: Trial) -> None:
    """Write down that a trial was stopped early: its process had no time to."""
    path = trial.run_dir / JOB_NAME
    write_json(path, read_json(path, what="the state of a trial") | {"status": "stopped"})
    with contextlib.suppress(MlflowException):  # a server that is not there keeps its picture of the run
        close_killed(trial.search, trial.key)


def assemble(config: RunConfig, found: SearchResult, mode: Mode) -> SearchReport:
    """The report, without what is written beside it."""
    rows = conclusions.trial_rows(found.trials, found.errors)
    seen: Findings = {
        "pick": conclusions.pick(rows, config.search.metric),
        "verification": conclusions.verification(found.trials, rows),
        **conclusions.trade_off(rows),
    }
    shared = found.trials[0].search
    manifests = {
        name: DatasetManifest.load(Path(str(folder)))
        for name, folder in (("data", shared.data), ("validation_data", shared.validation_data))
    }
    return {
        "title": f"Search of {config.name}: the ratio of alpha and beta",
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
        **seen,
        "sentences": captions.sentences(rows, seen),
        "warnings": [*cautions_of(resolve(shared)), *captions.warnings(rows, seen["verification"])],
        "notes": captions.notes(mode=mode, is_embedded=config.data == TOYWORLD),
        "timings": found.timings,
        "config": config.model_dump(),
        "digests": {
            **{name: manifest.data_digest for name, manifest in manifests.items()},
            "code": code_digest(),
            "commit": commit() or "",
        },
    }


def headline(best: TrialRow) -> dict[str, float | None]:
    return {name: best[name] for name in FIGURES}


def write_recipe(config: RunConfig, row: TrialRow, why: str, run_dir: Path) -> Path:
    """Write the recipe that trains the picked ratio; why: the sentence at its head."""
    weights = {"train.alpha": row["alpha"], "train.beta": row["beta"], "name": f"{config.name}-chosen"}
    chosen = config_with_changes(
        config.model_dump(exclude={"search"}), [row["changes"], weights], source="search.space"
    )
    path = run_dir / CHOSEN_NAME
    head = f"# {why}\n"
    if row["source"] == "soup":
        head += "# What was picked is a soup: this recipe trains its ratio, which gives another policy.\n"
    write_text(path, head + dump_yaml(chosen.model_dump(exclude={"search"})))
    return path


def registered(config: RunConfig, found: SearchResult, mode: Mode, rows: Sequence[TrialRow], picked: int) -> str | None:
    """Register the picked policy, and what soups are mixed from; a server that refuses is a warning, not the end."""
    aliases = {picked: [CHAMPION]}
    for number, alias in enumerate(ENDS if mode == "soup" else ()):
        if rows[number]["status"] == "finished":
            aliases.setdefault(number, []).append(alias)
    try:
        for number, names in aliases.items():
            trial = found.trials[number]
            tags = {"alpha": f"{trial.point.alpha:g}", "beta": f"{trial.point.beta:g}", "run_dir": str(trial.run_dir)}
            register(trial.search, trial.key, name=config.name, aliases=names, tags=tags)
    except UserError as error:
        console.print(str(error), style="yellow", highlight=False)
        return None
    return f"{config.name}@{CHAMPION}"
