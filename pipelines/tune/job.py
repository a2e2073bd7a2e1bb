"""`tune`: search the ratio of alpha and beta, report both poles, and leave the chosen ratio as recipe and model."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from pft_core.data import DatasetManifest, opened
from pft_core.errors import UserError
from pft_core.files import digest
from pipelines.config import TOYWORLD, Range, RunConfig, config_with_changes, searchable
from pipelines.embedded_data import with_embedded
from pipelines.evaluate import read_items, refuse_too_few_scenarios
from pipelines.jobs import ensure_ray, locked, mark_interrupted_workers, remove_run, run_job
from pipelines.tracking import tracked, tracking_uri
from pipelines.train import encode_layers, print_cautions, refuse_missing_inputs, resolve
from pipelines.tune.results import Result, SearchResult, TrialsFailed, publish
from pipelines.tune.search import search, trials_at_once
from pipelines.tune.search_points import SearchPoint, grid_points, imbalance, soup_points, verification_points
from pipelines.tune.search_schema import Mode
from pipelines.tune.searchers import ListedPoints, OptunaPoints
from pipelines.tune.trial import Trial


def run(config: RunConfig, *, mode: Mode = "grid", fresh: bool = False) -> Result:
    """Search, or go on with an interrupted search, in `<storage>/tune/<name>-<mode>-<key>`.

    Result: run_dir, report_json, report_html, recipe (trains the picked ratio), model (`name@alias`, None where it
    could not be registered), alpha, beta, failed (trials). Raises UserError for what cannot be searched, before
    anything starts.
    """
    refuse_missing_inputs(config, is_searched=True)
    refuse_unsearchable(config, mode)
    ensure_ray(dashboard=True)
    trials_at_once(config)
    whole = in_place(config)
    refuse_unasked(whole)
    refuse_too_few(whole)
    print_cautions(resolve(whole))
    job = whole.model_copy(update={"name": f"{config.name}-{mode}", "storage": str(Path(whole.storage) / "tune")})

    def execute(run_dir: Path, key: str) -> Result:
        with tracked(job, run_dir, key, inputs=opened(job.data, job.validation_data)) as tracker:
            shared = trial_config(whole, key)
            if fresh:
                forget(shared, mode)
            with mark_interrupted_workers(Path(shared.storage), shared):
                found = explore(shared, mode, run_dir)
            return publish(config, found, mode, run_dir, tracker)

    try:
        return run_job(job, execute, fresh=fresh, kind=f"tune:{mode}:{digest(config.search.model_dump())}")
    except TrialsFailed as error:  # not a finished search: the same command tries these trials again
        return error.result | {"status": "FAILED"}


def forget(config: RunConfig, mode: Mode) -> None:
    """Delete what earlier searches have found of this one's points; Optuna's are not known beforehand."""
    points = [] if mode == "optuna" else points_of(config, mode)
    if mode == "soup":
        points += verification_points(points, config.search.verify)
    for point in points:
        run_dir = Trial(config, point, mode == "asha").run_dir
        with locked(run_dir):  # another search may be at it
            remove_run(run_dir)


def refuse_unsearchable(config: RunConfig, mode: Mode) -> None:
    """Say what cannot be searched. Raises UserError."""
    if not config.train.entry.is_searchable:
        raise UserError(
            f"train.objective={config.train.objective} is not decided by the ratio of alpha and beta: take one of "
            f"{', '.join(searchable())}"
        )
    for key, values in config.search.space.items():
        for value in [values.low, values.high] if isinstance(values, Range) else values:
            config_with_changes(config.model_dump(), [{key: value}], source="search.space")
    if mode != "optuna":
        points_of(config, mode)


def in_place(config: RunConfig) -> RunConfig:
    """The config with the embedded data and whole paths; trials, which lie elsewhere, are tracked where it is."""
    if config.data == TOYWORLD and config.validation_data is None:
        config = config.model_copy(update={"validation_data": TOYWORLD})
    storage = Path(config.storage).resolve()
    tracking = config.tracking
    if not (tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")):  # that one may hold a password: it stays there
        tracking = tracking.model_copy(update={"uri": tracking_uri(None, storage)})
    return with_embedded(config.model_copy(update={"storage": str(storage), "tracking": tracking}))


def refuse_unasked(config: RunConfig) -> None:
    """Raises UserError where no trial would report the figure that the search asks for."""
    forms = DatasetManifest.load(Path(str(config.validation_data))).forms
    for form in dict.fromkeys(("one", config.search.form)):  # both-right is of the first
        if form not in forms:
            raise UserError(
                f"search.form={config.search.form}: no trial can report it, {config.validation_data} has only the "
                f"forms {', '.join(forms)}: prepare it with --forms one,{config.search.form}"
            )


def refuse_too_few(config: RunConfig) -> None:
    """Raises UserError where an axis has too few validation scenarios for an interval."""
    folder = Path(str(config.validation_data))
    limit = config.search.limit_per_axis
    items = read_items(folder, DatasetManifest.load(folder), forms=["one"], limit_per_axis=limit)
    refuse_too_few_scenarios(items, advice="raise search.limit_per_axis" if limit else "give more data")


def trial_config(config: RunConfig, key: str) -> RunConfig:
    """What all trials share: a folder in common with other searches', and runs of MLflow below this search's."""
    tracking = config.tracking.model_copy(update={"parent": key})
    return config.model_copy(update={"storage": str(Path(config.storage) / "tune" / "trials"), "tracking": tracking})


def points_of(config: RunConfig, mode: Mode) -> list[SearchPoint]:
    if mode == "soup":
        return soup_points(config.search)
    points = grid_points(config.search)
    # A trial is stopped by what came before it: the ratios that are likely to be good come first.
    return sorted(points, key=imbalance) if mode == "asha" else points


def explore(config: RunConfig, mode: Mode, run_dir: Path) -> SearchResult:
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
    return SearchResult([Trial(config, point, stops_early) for point in points], errors, timings)


def try_points(
    config: RunConfig, points: Sequence[SearchPoint], run_dir: Path, *, stops_early: bool = False
) -> dict[str, str]:
    encode([Trial(config, point, stops_early).config for point in points])
    return search(config, ListedPoints(points), num_trials=len(points), folder=run_dir, stops_early=stops_early)


def propose(config: RunConfig, run_dir: Path) -> tuple[list[SearchPoint], dict[str, str]]:
    """Let Optuna propose what is left of its trials; return all that it has proposed, and what went wrong."""
    singles = [
        {key: value} for key, values in config.search.space.items() if isinstance(values, list) for value in values
    ]
    encode([Trial(config, SearchPoint(1.0, 1.0, changes=changes)).config for changes in [{}, *singles]])
    study = OptunaPoints(config, run_dir)
    errors = search(config, study.searcher, num_trials=study.num_left, folder=run_dir) if study.num_left else {}
    return study.points(), errors


def encode(configs: Sequence[RunConfig]) -> None:
    """Encode the data of all trials before they start: two that write one layer at once would spoil it."""
    seen = set()
    for config in configs:
        key = digest([config.prompt.model_dump(), config.encoding.model_dump(), config.train.objective, config.model])
        if key not in seen:
            encode_layers(resolve(config))
        seen.add(key)
