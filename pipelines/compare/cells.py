"""One cell of a comparison: a method with one seed and variant, trained and evaluated by a warm one-thread actor.

Every cell is a job (`run_job`): an identical one is not run again, and a killed comparison resumes.
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
from pipelines.compare.method_answerers import history_answerers, steering_answerers
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
    base_reference,
    read_items,
)
from pipelines.jobs import config_identity, finished_result, run_job, unwrap_user_error
from pipelines.progress import relayed, stage
from pipelines.tracking import Tracker, read_metrics, tracked
from pipelines.train import RunLayers, resolve, train_here

CAPABILITY_NAME = "capability.json"
CAPABILITY_MAX_LENGTH = 1024  # tokens; general questions are longer than scenarios
NO_SEED = -1  # for methods that do not depend on a seed


@dataclass(frozen=True)
class Cell:
    """Everything an actor needs to run a cell.

    stages: the run config of each training in turn; a method without training has one. layers: the encoded layers of
    each stage, none without training. base_digest: the digest of the weights that all methods start from.
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
    commit: str | None  # of the driver's code, because workers on a cluster have no repository

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.use_gpu else "cpu")

    @property
    def title(self) -> str:
        """The name of the cell, with its variant and seed."""
        variant = "" if self.variant is None else f" {self.variant.value}"
        return f"{self.name}{variant}{'' if self.seed == NO_SEED else f' seed {self.seed}'}"

    @property
    def kind(self) -> str:
        """Return what decides a cell's result besides its last run config and training data."""
        earlier = [config_identity(stage) for stage in self.stages[:-1]]
        data = [DatasetManifest.load(Path(folder)).data_digest for folder in (self.validation, self.test)]
        parts = [self.method, earlier, data, self.forms, self.test_per_axis, self.base_digest, self.capability_digest]
        return f"cell:{self.name}:{digest(parts)}"

    @property
    def capability_digest(self) -> str | None:
        """Return the digest of the general questions: the two-choice file, and lm-eval's tasks with their files."""
        names = [name for name in (self.capability, *self.lm_eval) if name]
        return digest([file_sha256(Path(n)) if Path(n).is_file() else n for n in names]) if names else None


class CellActor:
    """A Ray actor with one thread that runs cells; an error in a cell becomes its result."""

    def __init__(self, relay: Any) -> None:
        torch.set_num_threads(1)
        self._relay = relay

    def run(self, cell: Cell) -> dict[str, Any]:
        """Return the result of run_cell, or `error` with a message for the user."""
        try:
            with relayed(self._relay, cell.title):
                return run_cell(cell)
        except Exception as error:  # a failed seed must not stop the others
            mistake = unwrap_user_error(error)
            return {"error": str(mistake) if mistake else f"{type(error).__name__}: {error}"}


def stored_result(cell: Cell) -> dict[str, Any] | None:
    """Return the result of an identical finished cell, or None. An unreadable one is run, which reports the reason."""
    try:
        return finished_result(cell.stages[-1], kind=cell.kind)
    except UserError:
        return None


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train and evaluate a cell, or return the result of an identical finished one.

    Result: run_id, run_dir, outcomes (a file), items_rejected and pairs_rejected (too long), digests, commit, seconds,
    pairs_per_s (None without training), capability_error (None if capability was measured or not requested).
    """
    config = cell.stages[-1]

    def execute(run_dir: Path, key: str) -> dict[str, Any]:
        started = time.monotonic()
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
            "seconds": time.monotonic() - started,
            "pairs_per_s": median_rate(run_dir) if cell.layers else None,
        }

    return run_job(config, execute, fresh=False, kind=cell.kind)


def train_stages(cell: Cell, run_dir: Path, tracker: Tracker) -> ModelRef:
    """Train each stage from the policy of the one before; return the last policy, or the base if none is trained."""
    base, first_step = str(cell.stages[0].model), 0
    for number, (config, layer) in enumerate(zip(cell.stages, cell.layers, strict=False), start=1):
        config = config.model_copy(update={"model": base})
        folder = run_dir if number == len(cell.layers) else run_dir / f"stage{number}"
        ref, steps = train_here(resolve(config), layer, folder, log=after(first_step, tracker), device=cell.device)
        first_step += steps
        if number < len(cell.layers):
            base = trained_model(base, ref, folder)
    return ref if cell.layers else base_reference(cell.stages[0], cell.test)


def after(first_step: int, tracker: Tracker) -> Callable[[int, dict[str, float]], None]:
    """Return a logger that counts a stage's steps after those of earlier stages."""
    return lambda step, metrics: tracker.log(first_step + step, metrics)


def trained_model(base: str, ref: ModelRef, folder: Path) -> str:
    """Return the folder of the full model that a stage trained, for the next stage to start from."""
    if ref.weights is not None:
        return ref.weights
    return str(merge_adapter(base, Path(str(ref.adapter)), folder / "merged"))


def ask_policy(cell: Cell, ref: ModelRef, run_dir: Path) -> tuple[list[Outcome], list[Reject]]:
    """Ask every test item under its conditions; `leak` compares with the suite's base, before any stage."""
    manifest = DatasetManifest.load(Path(cell.test))
    answer, base_answer = ways_to_answer(cell, evaluation_job(cell, ref, manifest.space), run_dir)
    if ref.base != cell.stages[0].model:
        first = replace(ref, base=str(cell.stages[0].model), adapter=None, weights=None)
        base_answer, _ = answerers(evaluation_job(cell, first, manifest.space))
    items = read_items(Path(cell.test), manifest, forms=cell.forms, limit_per_axis=cell.test_per_axis)
    with stage("evaluate", len(items)):
        return ask_here(items, answer, base_answer)


def write_capability(cell: Cell, ref: ModelRef, run_dir: Path) -> str | None:
    """Measure general capability of the policy and, before training, of the suite's base; write capability.json.

    A policy that is steered or shown examples is not measured. Returns the error if the questions could not be asked,
    so that a failure there does not lose the training.
    """
    if cell.method.asked_by != "condition" or not (cell.capability or cell.lm_eval):
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
    answers = {"after": ask_general(cell, after)}
    if cell.layers:
        answers["before"] = ask_general(cell, evaluation_job(cell, first, space))
    return answers


def ask_general(cell: Cell, job: AnsweringJob) -> dict[str, Any]:
    """Return answers to the two-choice file and lm-eval's tasks, and the number of rejected items."""
    max_length = within_positions(max(job.settings.max_length, CAPABILITY_MAX_LENGTH), job.ref.weights or job.ref.base)
    settings = replace(job.settings, max_length=max_length)
    job = replace(job, settings=settings)
    replies = ask_capability(job, Path(cell.capability)) if cell.capability else []
    answers = [asdict(a) for a in replies if isinstance(a, CapabilityAnswer)]
    if cell.lm_eval:
        answers += [asdict(a) for a in ask_lm_eval(job, cell.lm_eval)]
    return {"answers": answers, "rejected": sum(isinstance(a, Reject) for a in replies)}


def ways_to_answer(cell: Cell, job: AnsweringJob, run_dir: Path) -> tuple[Answerer, Answerer | None]:
    """Return answerers of the method's policy and of its base (None if the policy is its own base)."""
    train = Path(str(cell.stages[-1].data))
    if cell.method.asked_by == "history":
        return history_answerers(job, train=train, seed=cell.seed, run_dir=run_dir)
    if cell.method.asked_by == "steering":
        return steering_answerers(job, train=train, validation=Path(cell.validation), run_dir=run_dir)
    return answerers(job)


def evaluation_job(cell: Cell, ref: ModelRef, space: PreferenceSpace) -> AnsweringJob:
    return answering_job_of(cell.stages[-1], ref, space, use_gpu=cell.use_gpu)


def median_rate(run_dir: Path) -> float:
    """Return the median over steps of pairs per second, since the first steps are slower than the rest."""
    rates: list[float] = [row["pairs_per_s"] for row in read_metrics(run_dir) if "pairs_per_s" in row]
    return statistics.median(rates)
