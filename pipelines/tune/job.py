"""`tune`: search the ratio of alpha and beta, report both poles, and leave the chosen ratio as recipe and model."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pft_core.artifacts import DatasetManifest, digest
from pft_core.errors import UserError
from pipelines import train
from pipelines.config import UNWEIGHTED, Range, RunConfig, changed
from pipelines.console import console
from pipelines.embedded import TOYWORLD, with_embedded
from pipelines.jobs import code_digest, commit, ensure_ray, run_job
from pipelines.registry import register
from pipelines.tracking import Tracker, tracked, tracking_uri
from pipelines.tune import findings, wording
from pipelines.tune.points import Point, grid_points, imbalance, soup_points, verification_points
from pipelines.tune.report import write_search
from pipelines.tune.search import search, trials_at_once
from pipelines.tune.searchers import ListedPoints, OptunaPoints
from pipelines.tune.trial import Trial

Mode = Literal["grid", "soup", "asha", "optuna"]
CHOSEN_NAME = "chosen.yaml"
CHAMPION = "champion"  # the alias of the picked policy
ENDS = ("middle", "second", "first")  # aliases of what soups are mixed from: equal weights, and each side alone
Result = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What a search has tried: its trials, what went wrong by the point's JSON, and seconds by part."""

    trials: list[Trial]
    errors: dict[str, str]
    timings: dict[str, float]


def run(config: RunConfig, *, mode: Mode = "grid", fresh: bool = False) -> Result:
    """Search, or go on with an interrupted search, in `<storage>/tune/<name>-<mode>-<key>`.

    Result: run_dir, report_json, report_html, recipe (trains the picked ratio), model (`name@alias`, None where it
    could not be registered), alpha, beta. Raises UserError for what cannot be searched, before anything starts.
    """
    refuse_unsearchable(config, mode)
    train.refuse_missing_inputs(config)
    ensure_ray()
    trials_at_once(config)
    whole = in_place(config)
    refuse_unasked(whole)
    job = whole.model_copy(update={"name": f"{config.name}-{mode}", "storage": str(Path(whole.storage) / "tune")})

    def execute(run_dir: Path, key: str) -> Result:
        with tracked(job, run_dir, key, inputs=[job.data, job.validation_data]) as tracker:
            found = explore(trial_config(whole, run_dir, key), mode, run_dir)
            return publish(config, found, mode, run_dir, tracker)

    return run_job(job, execute, fresh=fresh, kind=f"tune:{mode}:{digest(config.search.model_dump())}")


def refuse_unsearchable(config: RunConfig, mode: Mode) -> None:
    """Say what cannot be searched. Raises UserError."""
    if config.train.objective in UNWEIGHTED:
        raise UserError(f"train.objective={config.train.objective} has no alpha and beta to search: take pft, for one")
    if config.validation_data is None and config.data != TOYWORLD:
        raise UserError("validation_data is not set: the ratio is picked on it; give validation_data=DIR")
    for key, values in config.search.space.items():
        for value in [values.low, values.high] if isinstance(values, Range) else values:
            changed(config.model_dump(), [{key: value}], source="search.space")
    if mode != "optuna":
        points_of(config, mode)


def in_place(config: RunConfig) -> RunConfig:
    """The config with the embedded data and whole paths, tracked where the storage folder says."""
    if config.data == TOYWORLD and config.validation_data is None:
        config = config.model_copy(update={"validation_data": TOYWORLD})
    storage = Path(config.storage).resolve()
    uri = tracking_uri(config.tracking.uri, storage)
    config = config.model_copy(
        update={"storage": str(storage), "tracking": config.tracking.model_copy(update={"uri": uri})}
    )
    return with_embedded(config)


def refuse_unasked(config: RunConfig) -> None:
    """Raises UserError where no trial would report the figure that the search asks for."""
    forms = DatasetManifest.load(Path(str(config.validation_data))).forms
    for form in dict.fromkeys(("one", config.search.form)):  # both-right is of the first
        if form not in forms:
            raise UserError(
                f"search.form={config.search.form}: no trial can report it, {config.validation_data} has only the "
                f"forms {', '.join(forms)}: prepare it with --forms one,{config.search.form}"
            )


def trial_config(config: RunConfig, run_dir: Path, key: str) -> RunConfig:
    """What all trials share: they lie in the search's folder, and their runs below the search's."""
    tracking = config.tracking.model_copy(update={"parent": key})
    return config.model_copy(update={"storage": str(run_dir / "trials"), "tracking": tracking})


def points_of(config: RunConfig, mode: Mode) -> list[Point]:
    if mode == "soup":
        return soup_points(config.search)
    points = grid_points(config.search)
    # A trial is stopped by what came before it: the ratios that are likely to be good come first.
    return sorted(points, key=imbalance) if mode == "asha" else points


def explore(config: RunConfig, mode: Mode, run_dir: Path) -> Found:
    """Try everything; after soups, train some of their ratios for comparison."""
    stops_early = mode == "asha"
    begun = time.monotonic()
    if mode == "optuna":
        points, errors = propose(config, run_dir)
    else:
        points = points_of(config, mode)
        errors = try_points(config, points, run_dir, stops_early=stops_early)
    timings = {"search": time.monotonic() - begun}
    if mode == "soup" and config.search.verify:
        begun = time.monotonic()
        real = verification_points(points, config.search.verify)
        errors |= try_points(config, real, run_dir)
        points += real
        timings["verify"] = time.monotonic() - begun
    return Found([Trial(config, point, stops_early) for point in points], errors, timings)


def try_points(
    config: RunConfig, points: Sequence[Point], run_dir: Path, *, stops_early: bool = False
) -> dict[str, str]:
    encode([Trial(config, point, stops_early).config for point in points])
    return search(config, ListedPoints(points), num_trials=len(points), folder=run_dir, stops_early=stops_early)


def propose(config: RunConfig, run_dir: Path) -> tuple[list[Point], dict[str, str]]:
    """Let Optuna propose what is left of its trials; return all that it has proposed, and what went wrong."""
    singles = [
        {key: value} for key, values in config.search.space.items() if isinstance(values, list) for value in values
    ]
    encode([Trial(config, Point(1.0, 1.0, changes=changes)).config for changes in [{}, *singles]])
    study = OptunaPoints(config.search, run_dir, seed=config.seed)
    errors = search(config, study.searcher, num_trials=study.num_left, folder=run_dir) if study.num_left else {}
    return study.points(), errors


def encode(configs: Sequence[RunConfig]) -> None:
    """Encode the data of all trials before they start: two that write one layer at once would spoil it."""
    seen = set()
    for config in configs:
        key = digest([config.prompt.model_dump(), config.encoding.model_dump(), config.train.objective, config.model])
        if key not in seen:
            train.make_payload(config)
        seen.add(key)


def publish(config: RunConfig, found: Found, mode: Mode, run_dir: Path, tracker: Tracker) -> Result:
    """Write report and recipe, register the picked policy. Raises UserError where no trial has finished."""
    report = assemble(config, found, mode)
    chosen = report["pick"]
    if chosen is None:
        raise UserError(f"no trial has finished: {'; '.join(report['warnings'])}")
    recipe = write_recipe(config, report, run_dir)
    report |= {"recipe": recipe.name, **registered(config, found, mode, chosen)}
    paths = write_search(report, run_dir)
    tracker.log(0, {name: value for name, value in headline(report).items() if value is not None})
    for path in (recipe, *paths.values()):
        tracker.artifact(path)
    for sentence in [*report["sentences"], *report["warnings"]]:
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)
    shown = {name: str(paths[name]) for name in ("report_json", "report_html")}
    return {
        "run_dir": str(run_dir),
        **shown,
        "recipe": str(recipe),
        "model": report["model"],
        "alpha": chosen["alpha"],
        "beta": chosen["beta"],
    }


def assemble(config: RunConfig, found: Found, mode: Mode) -> Result:
    """The report, without what is written beside it."""
    rows = findings.trial_rows(found.trials, found.errors)
    seen = {
        "pick": findings.pick(rows, config.search.metric),
        "verification": findings.verification(found.trials, rows),
        **findings.trade_off(rows),
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
        "cells": findings.cells_of(config.search, rows, is_grid=mode != "optuna"),
        "trials": rows,
        **seen,
        "sentences": wording.sentences(rows, seen),
        "warnings": wording.warnings(rows),
        "notes": wording.notes(mode=mode, is_embedded=config.data == TOYWORLD),
        "timings": found.timings,
        "config": config.model_dump(),
        "digests": {
            **{name: manifest.data_digest for name, manifest in manifests.items()},
            "code": code_digest(),
            "commit": commit() or "",
        },
    }


def headline(report: Mapping[str, Any]) -> dict[str, float | None]:
    best = report["trials"][report["pick"]["trial"]]
    names = ("pole_first", "pole_second", "worse_pole", "both_right")
    return {name: best[name] for name in names} | {"hypervolume": report["hypervolume"]}


def write_recipe(config: RunConfig, report: Mapping[str, Any], run_dir: Path) -> Path:
    """Write the recipe that trains the picked ratio."""
    row = report["trials"][report["pick"]["trial"]]
    weights = {"train.alpha": row["alpha"], "train.beta": row["beta"], "name": f"{config.name}-chosen"}
    chosen = changed(config.model_dump(exclude={"search"}), [row["changes"], weights], source="search.space")
    path = run_dir / CHOSEN_NAME
    head = f"# {report['sentences'][0]}\n"
    path.write_text(head + yaml.safe_dump(chosen.model_dump(exclude={"search"}), sort_keys=False), encoding="utf-8")
    return path


def registered(config: RunConfig, found: Found, mode: Mode, chosen: Mapping[str, Any]) -> Result:
    """Register the picked policy, and what soups are mixed from; a server that refuses is a warning, not the end."""
    aliases = {chosen["trial"]: [CHAMPION]}
    for number, alias in enumerate(ENDS if mode == "soup" else ()):
        aliases.setdefault(number, []).append(alias)
    try:
        for number, names in aliases.items():
            trial = found.trials[number]
            tags = {"alpha": f"{trial.point.alpha:g}", "beta": f"{trial.point.beta:g}", "run_dir": str(trial.run_dir)}
            register(trial.search, trial.key, name=config.name, aliases=names, tags=tags)
    except UserError as error:
        console.print(str(error), style="yellow", highlight=False, markup=False)
        return {"model": None}
    return {"model": f"{config.name}@{CHAMPION}"}
