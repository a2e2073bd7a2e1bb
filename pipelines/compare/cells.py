"""One cell of a comparison: a method with one seed and variant, trained and asked by a warm one-thread actor.

Every cell is a job of its own (`run_job`): an identical one is not run again, and a killed comparison goes on.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pft_core.data import DatasetManifest, Form, PreferenceSpace, Reject, opened
from pft_core.encoding import EncodedLayer
from pft_core.errors import UserError
from pft_core.evaluation import OUTCOMES_NAME, Answerer, CapabilityAnswer, Outcome, write_outcomes
from pft_core.files import digest, file_sha256, write_json
from pft_core.policies import ModelRef, merge_adapter, within_positions
from pipelines.compare.method_answerers import asked_after_history, asked_steered
from pipelines.compare.methods import Method
from pipelines.compare.suite import Variant
from pipelines.config import RunConfig
from pipelines.evaluate import (
    AnsweringJob,
    answerers,
    answering_job_of,
    ask_capability,
    ask_here,
    ask_lm_eval,
    read_items,
    untrained,
)
from pipelines.jobs import config_identity, finished_result, run_job, unwrap_user_error
from pipelines.tracking import Tracker, read_metrics, tracked
from pipelines.train import RunLayers, resolve, train_here

CAPABILITY_NAME = "capability.json"
CAPABILITY_MAX_LENGTH = 1024  # tokens; general questions are longer than scenarios
NO_SEED = -1  # of methods that a seed does not change


@dataclass(frozen=True)
class Cell:
    """What an actor needs. stages: the run config of each training in turn, with the folder of its encoded layer; a
    method that is not trained has one config, and no layers. base_digest: of the weights that all methods start from.
    """

    name: str
    method: Method
    seed: int
    variant: Variant | None
    base_digest: str
    stages: tuple[RunConfig, ...]
    layers: tuple[RunLayers, ...]
    validation: str
    test: str
    forms: tuple[Form, ...]
    test_per_axis: int | None
    use_gpu: bool
    capability: str | None  # a two-choice file
    lm_eval: tuple[str, ...]
    commit: str | None  # of the driver's code; a cluster's workers have no repository

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.use_gpu else "cpu")

    @property
    def kind(self) -> str:
        """What decides a cell's result besides its last run config and training data."""
        earlier = [config_identity(stage) for stage in self.stages[:-1]]
        data = [DatasetManifest.load(Path(folder)).data_digest for folder in (self.validation, self.test)]
        parts = [self.method, earlier, data, self.forms, self.test_per_axis, self.base_digest, self.capability_digest]
        return f"cell:{self.name}:{digest(parts)}"

    @property
    def capability_digest(self) -> str | None:
        """Of the general questions: the two-choice file, and lm-eval's tasks with their files."""
        named = [name for name in (self.capability, *self.lm_eval) if name]
        return digest([file_sha256(Path(n)) if Path(n).is_file() else n for n in named]) if named else None


class CellActor:
    """A Ray actor with one thread that runs cells; what goes wrong in one is its result."""

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Return run_cell's result, or `error` with what a user reads of it."""
        try:
            return run_cell(cell)
        except Exception as error:  # one seed must not take the others with it
            mistake = unwrap_user_error(error)
            return {"error": str(mistake) if mistake else f"{type(error).__name__}: {error}"}


def finished(cell: Cell) -> dict[str, Any] | None:
    """What an identical cell has found, where it is finished. One that cannot be read is not: running it says why."""
    try:
        return finished_result(cell.stages[-1], kind=cell.kind)
    except UserError:
        return None


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train and ask, or return what an identical cell found.

    Result: run_id, run_dir, outcomes (a file), items_rejected and pairs_rejected (too long), digests, commit, seconds,
    pairs_per_s (None where nothing is trained), capability_error (None: asked, or not to be asked).
    """
    config = cell.stages[-1]

    def execute(run_dir: Path, key: str) -> dict[str, Any]:
        begun = time.monotonic()
        data = opened(config.data, cell.test)
        with tracked(config, run_dir, key, inputs=data, contexts=("train", "test")) as tracker:
            ref = train_stages(cell, run_dir, tracker)
            outcomes, rejects = ask_policy(cell, ref, run_dir)
            write_outcomes(run_dir, outcomes)
            capability_error = write_capability(cell, ref, run_dir)
        return {
            "run_id": run_dir.name,
            "run_dir": str(run_dir),
            "outcomes": str(run_dir / OUTCOMES_NAME),
            "items_rejected": len(rejects),
            "pairs_rejected": EncodedLayer(Path(cell.layers[-1].train)).rejected if cell.layers else 0,
            "base_digest": cell.base_digest,
            "capability_digest": cell.capability_digest,
            "capability_error": capability_error,
            "data_digest": DatasetManifest.load(Path(str(config.data))).data_digest,
            "test_digest": DatasetManifest.load(Path(cell.test)).data_digest,
            "template_digest": ref.template_digest,
            "commit": cell.commit,
            "seconds": time.monotonic() - begun,
            "pairs_per_s": median_rate(run_dir) if cell.layers else None,
        }

    return run_job(config, execute, fresh=False, kind=cell.kind)


def train_stages(cell: Cell, run_dir: Path, tracker: Tracker) -> ModelRef:
    """Train each stage from the policy of the one before; return the last policy, or the base with its words."""
    base, first_step = str(cell.stages[0].model), 0
    for number, (config, layer) in enumerate(zip(cell.stages, cell.layers, strict=False), start=1):
        config = config.model_copy(update={"model": base})
        folder = run_dir if number == len(cell.layers) else run_dir / f"stage{number}"
        ref, steps = train_here(resolve(config), layer, folder, log=after(first_step, tracker), device=cell.device)
        first_step += steps
        if number < len(cell.layers):
            base = trained_model(base, ref, folder)
    return ref if cell.layers else untrained(cell.stages[0], cell.test)


def after(first_step: int, tracker: Tracker) -> Callable[[int, dict[str, float]], None]:
    """Log a stage's steps behind those of the stages before."""
    return lambda step, metrics: tracker.log(first_step + step, metrics)


def trained_model(base: str, ref: ModelRef, folder: Path) -> str:
    """The folder of the whole model that a stage has trained, for the next one to start from."""
    if ref.weights is not None:
        return ref.weights
    return str(merge_adapter(base, Path(str(ref.adapter)), folder / "merged"))


def ask_policy(cell: Cell, ref: ModelRef, run_dir: Path) -> tuple[list[Outcome], list[Reject]]:
    """Ask every test item under its conditions; the base that `leak` compares with is the suite's, before any stage."""
    manifest = DatasetManifest.load(Path(cell.test))
    answer, base_answer = ways_to_answer(cell, evaluation_job(cell, ref, manifest.space), run_dir)
    if ref.base != cell.stages[0].model:
        first = replace(ref, base=str(cell.stages[0].model), adapter=None, weights=None)
        base_answer, _ = answerers(evaluation_job(cell, first, manifest.space))
    items = read_items(Path(cell.test), manifest, forms=cell.forms, limit_per_axis=cell.test_per_axis)
    return ask_here(items, answer, base_answer)


def write_capability(cell: Cell, ref: ModelRef, run_dir: Path) -> str | None:
    """Ask the policy general questions, and the suite's base before any training: capability.json, where asked for.

    A policy that is not one to keep (steered, or shown examples) is not asked. Returns why nothing could be asked: it
    is no reason to lose what the training has given.
    """
    if cell.method.asked != "condition" or not (cell.capability or cell.lm_eval):
        return None
    try:
        write_json(run_dir / CAPABILITY_NAME, ask_before_and_after(cell, ref))
    except UserError as error:
        return str(error)
    return None


def ask_before_and_after(cell: Cell, ref: ModelRef) -> dict[str, Any]:
    space = DatasetManifest.load(Path(cell.test)).space
    after = evaluation_job(cell, ref, space)
    first = replace(ref, base=str(cell.stages[0].model), adapter=None, weights=None)
    found = {"after": ask_general(cell, after)}
    if cell.layers:
        found["before"] = ask_general(cell, evaluation_job(cell, first, space))
    return found


def ask_general(cell: Cell, job: AnsweringJob) -> dict[str, Any]:
    """Answers to the two-choice file and to lm-eval's tasks, and how many items were rejected."""
    max_length = within_positions(max(job.settings.max_length, CAPABILITY_MAX_LENGTH), job.ref.weights or job.ref.base)
    settings = replace(job.settings, max_length=max_length)
    job = replace(job, settings=settings)
    found = ask_capability(job, Path(cell.capability)) if cell.capability else []
    answers = [asdict(a) for a in found if isinstance(a, CapabilityAnswer)]
    if cell.lm_eval:
        answers += [asdict(a) for a in ask_lm_eval(job, cell.lm_eval)]
    return {"answers": answers, "rejected": sum(isinstance(a, Reject) for a in found)}


def ways_to_answer(cell: Cell, job: AnsweringJob, run_dir: Path) -> tuple[Answerer, Answerer | None]:
    """How the method's policy answers, and how its base does (None: it is its own base)."""
    train = Path(str(cell.stages[-1].data))
    if cell.method.asked == "history":
        return asked_after_history(job, train=train, seed=cell.seed, run_dir=run_dir)
    if cell.method.asked == "steering":
        return asked_steered(job, train=train, validation=Path(cell.validation), run_dir=run_dir)
    return answerers(job)


def evaluation_job(cell: Cell, ref: ModelRef, space: PreferenceSpace) -> AnsweringJob:
    return answering_job_of(cell.stages[-1], ref, space, use_gpu=cell.use_gpu)


def median_rate(run_dir: Path) -> float:
    """Pairs per second of the median step; the first steps are slower than the rest."""
    rates: list[float] = [row["pairs_per_s"] for row in read_metrics(run_dir) if "pairs_per_s" in row]
    return statistics.median(rates)
