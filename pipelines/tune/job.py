"""`tune`: search the ratio of alpha to beta, report both poles, and save the picked ratio as a recipe and a model."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from pft_core.data import DatasetManifest, opened
from pft_core.errors import UserError
from pft_core.files import digest
from pipelines.config import EMBEDDED_DATA, Range, RunConfig, config_with_changes, searchable, with_precision
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
    """Run a search, or continue an interrupted one, in `<storage>/tune/<name>-<mode>-<key>`.

    Result: run_dir, report_json, report_html, recipe (trains the picked ratio), model (`name@alias`, or None if it
    could not be registered), alpha, beta, failed (trials). Raises UserError before anything starts if the config
    cannot be searched.
    """
    refuse_missing_inputs(config, is_searched=True)
    refuse_unsearchable(config, mode)
    ensure_ray(dashboard=True)
    trials_at_once(config)
    whole = in_place(config)
    refuse_missing_form(whole)
    refuse_too_few(whole)
    print_cautions(resolve(whole))
    job = whole.model_copy(update={"name": f"{config.name}-{mode}", "storage": str(Path(whole.storage) / "tune")})

    def execute(run_dir: Path, key: str) -> Result:
        with tracked(job, run_dir, key, inputs=opened(job.data, job.validation_data)) as tracker:
            shared = trial_config(whole, key)
            if fresh:
                delete_trials(shared, mode)
            with mark_interrupted_workers(Path(shared.storage), shared):
                search_result = explore(shared, mode, run_dir)
            return publish(config, search_result, mode, run_dir, tracker)

    try:
        return run_job(job, execute, fresh=fresh, kind=f"tune:{mode}:{digest(config.search.model_dump())}")
    except TrialsFailed as error:  # the search is not finished: the same command tries these trials again
        return error.result | {"status": "FAILED"}


def delete_trials(config: RunConfig, mode: Mode) -> None:
    """Delete the trials of this search's points, also those of earlier searches; Optuna's are not known in advance."""
    points = [] if mode == "optuna" else points_of(config, mode)
    if mode == "soup":
        points += verification_points(points, config.search.verify)
    for point in points:
        run_dir = Trial(config, point, mode == "asha").run_dir
        with locked(run_dir):  # another search may be running it
            remove_run(run_dir)


def refuse_unsearchable(config: RunConfig, mode: Mode) -> None:
    """Raise UserError if the config cannot be searched."""
    if not config.train.entry.is_searchable:
        raise UserError(
            f"train.objective={config.train.objective} does not depend on the ratio of alpha to beta: set it to one of "
            f"{', '.join(searchable())}"
        )
    for key, values in config.search.space.items():
        for value in [values.low, values.high] if isinstance(values, Range) else values:
            config_with_changes(config.model_dump(), [{key: value}], source="search.space")
    if mode != "optuna":
        points_of(config, mode)


def in_place(config: RunConfig) -> RunConfig:
    """Return the config with embedded data and absolute paths; trials are tracked in the store of the search."""
    if config.data in EMBEDDED_DATA and config.validation_data is None:
        config = config.model_copy(update={"validation_data": config.data})
    storage = Path(config.storage).resolve()
    tracking = config.tracking
    if not (tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")):  # the variable may hold a password: do not copy it
        tracking = tracking.model_copy(update={"uri": tracking_uri(None, storage)})
    return with_precision(with_embedded(config.model_copy(update={"storage": str(storage), "tracking": tracking})))


def refuse_missing_form(config: RunConfig) -> None:
    """Raise UserError if no trial could report the figure that the search asks for."""
    forms = DatasetManifest.load(Path(str(config.validation_data))).forms
    for form in dict.fromkeys(("one", config.search.form)):  # both right needs the form "one"
        if form not in forms:
            raise UserError(
                f"search.form={config.search.form}: no trial can report it, because {config.validation_data} has only "
                f"the forms {', '.join(forms)}: prepare it with --forms one,{config.search.form}"
            )


def refuse_too_few(config: RunConfig) -> None:
    """Raise UserError if an axis has too few validation scenarios for an interval."""
    folder = Path(str(config.validation_data))
    limit = config.search.limit_per_axis
    items = read_items(folder, DatasetManifest.load(folder), forms=["one"], limit_per_axis=limit)
    refuse_too_few_scenarios(items, advice="raise search.limit_per_axis" if limit else "add validation data")


def trial_config(config: RunConfig, key: str) -> RunConfig:
    """Return the config that all trials share: a folder common to all searches, and this search as MLflow parent."""
    tracking = config.tracking.model_copy(update={"parent": key})
    return config.model_copy(update={"storage": str(Path(config.storage) / "tune" / "trials"), "tracking": tracking})


def points_of(config: RunConfig, mode: Mode) -> list[SearchPoint]:
    if mode == "soup":
        return soup_points(config.search)
    points = grid_points(config.search)
    # Earlier trials decide which later ones are stopped, so the ratios that are likely to be good come first.
    return sorted(points, key=imbalance) if mode == "asha" else points


def explore(config: RunConfig, mode: Mode, run_dir: Path) -> SearchResult:
    """Run all trials; after soups, train some of their ratios for comparison."""
    stops_early = mode == "asha"
    started = time.monotonic()
    if mode == "optuna":
        points, errors = propose(config, run_dir)
    else:
        points = points_of(config, mode)
        errors = try_points(config, points, run_dir, stops_early=stops_early)
    timings = {"search": time.monotonic() - started}
    if mode == "soup" and config.search.verify:
        started = time.monotonic()
        real = verification_points(points, config.search.verify)
        errors |= try_points(config, real, run_dir)
        points += real
        timings["verify"] = time.monotonic() - started
    return SearchResult([Trial(config, point, stops_early) for point in points], errors, timings)


def try_points(
    config: RunConfig, points: Sequence[SearchPoint], run_dir: Path, *, stops_early: bool = False
) -> dict[str, str]:
    encode([Trial(config, point, stops_early).config for point in points])
    return search(config, ListedPoints(points), num_trials=len(points), folder=run_dir, stops_early=stops_early)


def propose(config: RunConfig, run_dir: Path) -> tuple[list[SearchPoint], dict[str, str]]:
    """Let Optuna propose its remaining trials; return all proposed points, and errors by the point's JSON."""
    singles = [
        {key: value} for key, values in config.search.space.items() if isinstance(values, list) for value in values
    ]
    encode([Trial(config, SearchPoint(1.0, 1.0, changes=changes)).config for changes in [{}, *singles]])
    study = OptunaPoints(config, run_dir)
    errors = search(config, study.searcher, num_trials=study.num_left, folder=run_dir) if study.num_left else {}
    return study.points(), errors


def encode(configs: Sequence[RunConfig]) -> None:
    """Encode the data of all trials before they start, because two trials must not write one layer at once."""
    keys = set()
    for config in configs:
        key = digest([config.prompt.model_dump(), config.encoding.model_dump(), config.train.objective, config.model])
        if key not in keys:
            encode_layers(resolve(config))
        keys.add(key)
