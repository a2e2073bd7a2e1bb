"""One trial of a search: train a point, mix a soup or take the base, and evaluate it on the validation items.

A trial is a job (`run_job`): a finished one is not run again, and a killed search resumes. It trains on Ray Train, or,
with warm processes, in the process that runs it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pft_core.data import DatasetManifest, opened, read_trained_scenarios, write_trained_scenarios
from pft_core.errors import UserError
from pft_core.evaluation import OUTCOMES_NAME, Outcome, write_outcomes
from pft_core.files import digest
from pft_core.policies import (
    MODEL_REF_NAME,
    ModelRef,
    adapter_digests,
    interpolate_adapters,
    interpolate_weights,
    refuse_other_adapter,
)
from pft_core.training import EngineSettings
from pipelines.config import RunConfig, ScalingSettings, SearchSettings, config_with_changes
from pipelines.evaluate import answerers, answering_job_of, ask_here, ask_on_ray, base_reference, read_items
from pipelines.jobs import CONFIG_NAME, data_digests, run_job, run_key
from pipelines.progress import stage
from pipelines.tracking import Tracker, tracked
from pipelines.train import encode_if_large, encode_layers, policy_kind, resolve, train_here
from pipelines.train import job as train
from pipelines.tune.figures import figures_of
from pipelines.tune.rungs import NUM_RUNGS, RungReporter
from pipelines.tune.search_points import SearchPoint

Result = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A point of a search as a job. search: the config of the whole search, with absolute paths."""

    search: RunConfig
    point: SearchPoint
    stops_early: bool = False  # whether it is validated during training, for a scheduler that may stop it

    @property
    def is_warm(self) -> bool:
        """Whether the trial trains in a process that stays for the next one."""
        return self.search.search.trials == "warm"

    @property
    def config(self) -> RunConfig:
        """Return the search's config with the point's changes. Raises UserError for an invalid change."""
        point = self.point
        weights = {} if point.source == "base" else {"train.alpha": point.alpha, "train.beta": point.beta}
        config = config_with_changes(self.search.model_dump(), [point.changes, weights], source="search.space")
        update: dict[str, Any] = {"search": SearchSettings()}
        if self.is_warm:
            update |= {
                "engine": EngineSettings(),
                "scaling": ScalingSettings(use_gpu=config.scaling.use_gpu, threads_per_worker=1),
            }
        if self.stops_early:
            update["train"] = config.train.model_copy(update={"validate_every": steps_of_a_rung(config)})
        return config.model_copy(update=update)

    @property
    def kind(self) -> str:
        """Return what decides the result besides config, data and code: evaluation settings and a soup's parents."""
        search = self.search.search
        parts = [search.limit_per_axis, search.form, [parent.key for parent in self.parents], self.point.weights]
        return f"trial:{self.point.source}:{digest(parts)}"

    @property
    def key(self) -> str:
        """The run key of the trial's training."""
        config = self.config
        return run_key(config, kind=self.kind, data=data_digests(config))

    @property
    def run_dir(self) -> Path:
        """The folder of the trial's training."""
        return Path(self.search.storage) / f"{self.search.name}-{self.key[:8]}"

    @property
    def parents(self) -> list["Trial"]:
        """Return the trials of the trained points that a soup is mixed from."""
        return [Trial(self.search, SearchPoint(alpha, beta), self.stops_early) for alpha, beta in self.point.parents]


def steps_of_a_rung(config: RunConfig) -> int:
    """Return the steps between validations of a trial; pairs too long to encode are counted here too."""
    pairs = config.train.total_pairs(DatasetManifest.load(Path(str(config.data))).pairs_out)
    return math.ceil(pairs / config.train.pairs_per_step / NUM_RUNGS)


def run_trial(trial: Trial) -> Result:
    """Run a trial unless it is finished; with early stopping, first report the rungs of its earlier starts.

    Result: run_dir, outcomes (a file), items_rejected, steps, seconds, rung_losses, and the figures of `figures_of`.
    """
    config = trial.config
    rungs = RungReporter(config.train.validate_every) if trial.stops_early and trial.point.source == "trained" else None
    if rungs:
        rungs.replay(trial.run_dir)

    def execute(run_dir: Path, key: str) -> Result:
        started = time.monotonic()
        with tracked(config, run_dir, key, inputs=opened(config.data, config.validation_data)) as tracker:
            ref, steps = policy_of(trial, run_dir, tracker, rungs)
            outcomes, num_rejected = ask_policy(trial, ref, run_dir)
            figures = figures_of(outcomes, form=trial.search.search.form)
            tracker.log(steps + 1, {name: value for name, value in figures.items() if value is not None})
            for path in (run_dir / CONFIG_NAME, run_dir / OUTCOMES_NAME):
                tracker.artifact(path)
            if trial.point.source != "base":
                upload_policy(tracker, run_dir, config)
        return {
            "run_dir": str(run_dir),
            "outcomes": str(run_dir / OUTCOMES_NAME),
            "items_rejected": num_rejected,
            "steps": steps,
            "seconds": time.monotonic() - started,
            "rung_losses": rungs.losses(run_dir) if rungs else [],
            **figures,
        }

    return run_job(config, execute, fresh=False, kind=trial.kind, run_dir=trial.run_dir)


def upload_policy(tracker: Tracker, run_dir: Path, config: RunConfig) -> None:
    """Upload what the model registry needs: the reference and the adapter; full-size weights stay where they are."""
    tracker.artifact(run_dir / MODEL_REF_NAME)
    if config.lora is not None:
        tracker.artifact(run_dir / policy_kind(config))


def policy_of(trial: Trial, run_dir: Path, tracker: Tracker, rungs: RungReporter | None) -> tuple[ModelRef, int]:
    """Return the policy of a point, made if needed, and its number of steps."""
    if trial.point.source == "base":
        return base_reference(trial.config, str(trial.config.validation_data)), 0
    if trial.point.source == "soup":
        return soup_of(trial, run_dir), 0
    run = resolve(trial.config)
    if not trial.is_warm:
        callbacks = rungs.callbacks() if rungs else ()
        *_, outcome = train.train_on_ray(run, encode_if_large(run), run_dir, tracker, callbacks=callbacks)
        return ModelRef.load(run_dir), outcome["steps"]
    return train_here(run, encode_layers(run), run_dir, log=logging_to(tracker, rungs), device=device_of(trial.config))


def logging_to(tracker: Tracker, rungs: RungReporter | None) -> Callable[[int, dict[str, float]], None]:
    def log(step: int, metrics: dict[str, float]) -> None:
        tracker.log(step, metrics)
        if rungs:
            rungs.report({"step": step, **metrics})

    return log


def device_of(config: RunConfig) -> torch.device:
    return torch.device("cuda" if config.scaling.use_gpu else "cpu")


def soup_of(trial: Trial, run_dir: Path) -> ModelRef:
    """Mix the parents' adapters (or full fine-tuned weights) by the point's weights, and write its reference.

    Raises UserError if a parent has not been trained.
    """
    folders = [parent.run_dir for parent in trial.parents]
    for parent, folder in zip(trial.parents, folders, strict=True):
        if not (folder / MODEL_REF_NAME).is_file():
            reason = f"its parent {parent.point.ratio} has not been trained: see why that trial failed"
            raise UserError(f"{trial.point.ratio}: {reason}")
    kind, parts = policy_kind(trial.config), list(zip(folders, trial.point.weights, strict=True))
    refs = [ModelRef.load(folder) for folder in folders]
    for ref in refs:
        if ref.adapter:
            refuse_other_adapter(ref, adapter_digests(Path(ref.adapter)), name=ref.adapter)
    sides = tuple(sorted({side for ref in refs for side in ref.trained_sides}))
    ref = replace(refs[0], trained_sides=sides, config_digest=digest([trial.key]))
    if trial.config.lora is None:
        interpolate_weights([(folder / kind, weight) for folder, weight in parts], run_dir / kind)
        ref = replace(ref, weights=kind)
    else:
        interpolate_adapters([(folder / kind, weight) for folder, weight in parts], run_dir / kind)
        ref = replace(ref, adapter=kind, **adapter_digests(run_dir / kind))
    trained = [scenarios for folder in folders if (scenarios := read_trained_scenarios(folder)) is not None]
    if len(trained) == len(folders):
        write_trained_scenarios(run_dir, np.unique(np.concatenate(trained)))
    ref.save(run_dir)
    return ModelRef.load(run_dir)


def ask_policy(trial: Trial, ref: ModelRef, run_dir: Path) -> tuple[list[Outcome], int]:
    """Ask the validation items under both poles; store and return the outcomes, and return the number of rejects."""
    config = trial.config
    folder = Path(str(config.validation_data))
    manifest = DatasetManifest.load(folder)
    items = read_items(folder, manifest, forms=None, limit_per_axis=trial.search.search.limit_per_axis)
    job = answering_job_of(config, ref, manifest.space, use_gpu=config.scaling.use_gpu)
    if trial.is_warm:
        with stage("evaluate", len(items)):
            outcomes, rejects = ask_here(items, *answerers(job), unconditioned=False)
    else:
        outcomes, rejects = ask_on_ray(items, job, num_workers=config.scaling.num_workers)
    if not outcomes:
        limit = f"encoding.max_length={config.encoding.max_length}"
        raise UserError(f"{folder}: every validation item is longer than {limit}: raise it")
    write_outcomes(run_dir, outcomes)
    return outcomes, len(rejects)
