"""`evaluate`: Ray Data actors hold the model and ask every item; the rows of the report are made here."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pft_core.data import MANIFEST_NAME, DatasetManifest, Reject, worded_as
from pft_core.errors import UserError
from pft_core.evaluation import (
    METRICS,
    OUTCOMES_NAME,
    TASKS,
    EvaluationRow,
    Outcome,
    Task,
    TaskItem,
    reply_line,
    report_rows,
    scored,
    task_rows,
)
from pft_core.files import digest, write_lines
from pft_core.policies import ModelRef
from pipelines.console import console
from pipelines.evaluate.answering_actors import Item
from pipelines.evaluate.cautions import cautions
from pipelines.evaluate.endpoint import ServedPolicy
from pipelines.evaluate.evaluate_config import REJECTS_NAME, refuse_other_output, weights_reference
from pipelines.evaluate.evaluation_request import (
    EvaluateConfig,
    answer_settings_of,
    make_job,
    poles_of,
    policy_name,
    read_items,
    resolve_policy,
    trained_poles,
    with_precision,
)
from pipelines.evaluate.kept_groups import KeptGroups, forget_groups
from pipelines.evaluate.local_answers import ask_in_groups
from pipelines.evaluate.pool import ask_all_on_ray, ask_task_on_ray, read_answers
from pipelines.evaluate.report_examples import examples
from pipelines.evaluate.tracking import track
from pipelines.jobs import code_digest, ensure_ray
from pipelines.reporting import REPORT_NAMES, Example, RunReport, write_report


@dataclass(frozen=True)
class EvaluationResult:
    """The result of evaluating a policy. ask_s, statistics_s: seconds."""

    rows: list[EvaluationRow]
    num_items: int
    num_answered: int
    rejects: list[Reject]
    digests: dict[str, str | None]
    ask_s: float
    statistics_s: float
    cautions: list[str]
    examples: list[Example] = field(default_factory=list)


def run(config: EvaluateConfig, *, fresh: bool = False) -> dict[str, Any]:
    """Evaluate one policy; write report.json, report.html, and every outcome and reject. Result: report_json.

    fresh: replace an evaluation of another request in config.output.
    """
    refuse_other_output(config, fresh=fresh)
    task = TASKS[config.task]
    return run_all([config], fresh=fresh)[0] if task.asks_records else evaluate_task(config, task, fresh=fresh)


def run_all(configs: Sequence[EvaluateConfig], *, fresh: bool = True) -> list[dict[str, Any]]:
    """Evaluate several policies on prepared records with one pool of actors; otherwise like `run` for each."""
    evaluations = [RecordsEvaluation.of(config) for config in configs]
    if not all(evaluation.served for evaluation in evaluations):
        ensure_ray()
    evaluations = [replace(each, config=settled(each.config, fresh=fresh)) for each in evaluations]
    from_server = [evaluation.ask_here() for evaluation in evaluations if evaluation.served]
    from_ray = ask_on_pool([evaluation for evaluation in evaluations if not evaluation.served])
    answers = [(from_server if evaluation.served else from_ray).pop(0) for evaluation in evaluations]
    for evaluation, (outcomes, rejects, _) in zip(evaluations, answers, strict=True):
        keep(evaluation.config, [outcome.to_json() for outcome in outcomes], rejects)
    return [write(e.config, e.result(*answer)) for e, answer in zip(evaluations, answers, strict=True)]


def settled(config: EvaluateConfig, *, fresh: bool) -> EvaluateConfig:
    """Set the precision, which is known once Ray runs.

    Raises UserError, unless fresh, if the output holds an evaluation in another one.
    """
    config = with_precision(config)
    if not fresh:
        refuse_other_output(config)
    return config


def keep(config: EvaluateConfig, lines: Sequence[str], rejects: Sequence[Reject]) -> None:
    """Write the answers before computing any metric, because a user's own metric may fail.

    Delete the report of earlier answers. Without answers, leave everything as it was.
    """
    if not lines:
        return
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in REPORT_NAMES:
        (folder / name).unlink(missing_ok=True)
    write_lines(folder / OUTCOMES_NAME, lines)
    write_lines(folder / REJECTS_NAME, [json.dumps(asdict(reject)) for reject in rejects])


@contextmanager
def saying_what_is_kept(config: EvaluateConfig) -> Iterator[None]:
    """Add to a UserError from a metric that the outcomes are kept."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error} (the outcomes are kept in {Path(config.output) / OUTCOMES_NAME})") from error


def write(config: EvaluateConfig, result: EvaluationResult) -> dict[str, Any]:
    """Write the report of a result into config.output. Result: report_json."""
    report: RunReport = {
        "rows": result.rows,
        "items": {
            "in": result.num_items,
            "out": result.num_answered,
            "rejected": len(result.rejects),
            "rejected_by_reason": rejected_by_reason(result.rejects),
        },
        "timings": {"ask": result.ask_s, "statistics": result.statistics_s},
        "config": config.model_dump(exclude={"tracking"}),
        "digests": result.digests,
        "notes": asked_how(config),
        "cautions": result.cautions,
        "examples": result.examples,
    }
    for caution in result.cautions:
        console.print(caution, style="yellow", highlight=False, soft_wrap=True)
    report_json, _ = write_report(report, Path(config.output))
    forget_groups(config)
    track(config, report)
    return {"report_json": str(report_json)}


def asked_how(config: EvaluateConfig) -> list[str]:
    """Return sentences on the draw of the items and the precision, if the policy was loaded here."""
    sentences = []
    if config.limit_per_axis is not None:
        sentences.append(f"{config.limit_per_axis} records of each axis were drawn with seed {config.seed}.")
    if config.precision is not None:
        sentences.append(f"The model ran in {config.precision}.")
    return sentences


@dataclass(frozen=True)
class RecordsEvaluation:
    """Prepared records to ask under both poles and without a condition, and the policy to ask.

    served: the policy on a server, if any. trained: the reference that records its training, None if there is none.
    """

    config: EvaluateConfig
    manifest: DatasetManifest
    served: ServedPolicy | None
    trained: ModelRef | None
    ref: ModelRef
    items: list[Item]

    @staticmethod
    def of(config: EvaluateConfig) -> "RecordsEvaluation":
        """Resolve policy and items. Raises UserError."""
        manifest = DatasetManifest.load(Path(config.data))
        served = None if config.endpoint is None else served_policy(config)
        trained = served.ref if served else weights_reference(config)
        ref = in_words_of(served.ref, manifest) if served else resolve_policy(config, manifest)
        drawing: dict[str, Any] = {"limit_per_axis": config.limit_per_axis, "seed": config.seed}
        items = read_items(Path(config.data), manifest, forms=config.forms, **drawing)
        return RecordsEvaluation(config, manifest, served, trained, ref, items)

    @property
    def digests(self) -> dict[str, str | None]:
        return digests_of(self.ref, self.manifest.data_digest)

    @property
    def kept(self) -> KeptGroups:
        """Where its finished groups are kept."""
        return KeptGroups.of(self.config, self.ref, self.digests)

    def ask_here(self) -> tuple[list[Outcome], list[Reject], float]:
        """Ask the server; return outcomes, rejects and seconds."""
        assert self.served is not None, "only a served policy is asked in this process"
        started = time.perf_counter()
        answerers = self.served.answer, self.served.base_answer
        axes = self.ref.space.one_pole_axes
        table = ask_in_groups(self.items, *answerers, one_pole_axes=axes, kept=self.kept)
        return *read_answers(table.to_pylist()), time.perf_counter() - started

    def result(self, outcomes: list[Outcome], rejects: list[Reject], ask_s: float) -> EvaluationResult:
        """Compute the rows of the metrics. Raises UserError if every item was rejected."""
        config, started = self.config, time.perf_counter()
        refuse_all_rejected(config, len(self.items), len(outcomes), rejects)
        trained = None if self.trained is None else poles_of(self.trained)
        with saying_what_is_kept(config):
            rows = report_rows(outcomes, policy=policy_name(config), space=self.ref.space, trained_poles=trained)
        if self.served and not self.served.has_base:  # metrics that compare with the base need it
            rows = [row for row in rows if not METRICS[row["metric"]].needs_base]
        seconds = time.perf_counter() - started
        return EvaluationResult(
            rows,
            len(self.items),
            len(outcomes),
            rejects,
            self.digests,
            ask_s,
            seconds,
            cautions(config, self.trained, self.manifest, policy=policy_name(config), rows=rows),
            examples(outcomes, self.ref.space),
        )


def ask_on_pool(evaluations: Sequence[RecordsEvaluation]) -> list[tuple[list[Outcome], list[Reject], float]]:
    """Ask the policies that are loaded on the cluster; divide the total seconds evenly among them."""
    if not evaluations:
        return []
    started = time.perf_counter()
    requests = [(evaluation.items, make_job(evaluation.config, evaluation.ref)) for evaluation in evaluations]
    num_workers = max(evaluation.config.num_workers for evaluation in evaluations)
    answers = ask_all_on_ray(requests, num_workers=num_workers, kept=[evaluation.kept for evaluation in evaluations])
    seconds = (time.perf_counter() - started) / len(evaluations)
    return [(outcomes, rejects, seconds) for outcomes, rejects in answers]


def evaluate_task(config: EvaluateConfig, task: Task, *, fresh: bool) -> dict[str, Any]:
    """Evaluate a policy on a task, like `run`; the rows have the task's name as their metric."""
    data = Path(config.data)
    manifest = DatasetManifest.load(data) if (data / MANIFEST_NAME).is_file() else None
    ref = resolve_policy(config, manifest)
    read = task.read(data, answer_settings_of(config, ref))
    items = [item for item in read if isinstance(item, TaskItem)]
    data_digest = manifest.data_digest if manifest else digest([[i.id, i.prompt, i.answers] for i in items])
    digests = digests_of(ref, data_digest)
    ensure_ray()
    config = settled(config, fresh=fresh)
    started = time.perf_counter()
    kept = [KeptGroups.of(config, ref, digests)]
    replies, rejects = ask_task_on_ray(items, make_job(config, ref), num_workers=config.num_workers, kept=kept)
    rejects = [item for item in read if isinstance(item, Reject)] + rejects
    refuse_all_rejected(config, len(read), len(replies), rejects)
    asked_at = time.perf_counter()
    answered = [(items[place], reply) for place, reply in sorted(replies.items())]
    keep(config, [reply_line(item, reply) for item, reply in answered], rejects)
    policy, trained = policy_name(config), trained_poles(config)
    with saying_what_is_kept(config):
        scores = [scored(task, item, reply) for item, reply in answered]
        keep(config, [score.to_json() for score in scores], rejects)
        rows = task_rows(config.task, scores, policy=policy, space=ref.space, trained_poles=trained)
    seconds = time.perf_counter() - asked_at
    sentences = cautions(config, weights_reference(config), manifest, policy=policy)
    result = EvaluationResult(rows, len(read), len(scores), rejects, digests, asked_at - started, seconds, sentences)
    return write(config, result)


def refuse_all_rejected(config: EvaluateConfig, num_items: int, num_answered: int, rejects: Sequence[Reject]) -> None:
    """Print how many items were answered. Raises UserError if none was."""
    console.print(f"{num_items} items asked, {num_answered} answered, {len(rejects)} rejected")
    if not num_answered:
        raise UserError(
            f"{config.data}: every item was rejected {rejected_by_reason(rejects)}: {other_options(config)}"
        )


def other_options(config: EvaluateConfig) -> str:
    """Return the options that let more items through."""
    longer = "raise --max-length" if config.endpoint is None else "raise engine.max_length of the server"
    return f"{longer}, or choose other --forms" if TASKS[config.task].asks_records else longer


def served_policy(config: EvaluateConfig) -> ServedPolicy:
    """Return the policy behind config.endpoint. Raises UserError if it cannot score as the config wants."""
    return ServedPolicy.at(
        str(config.endpoint), config.model, scoring=config.scoring, max_new_tokens=config.max_new_tokens
    )


def in_words_of(ref: ModelRef, manifest: DatasetManifest) -> ModelRef:
    """Use the data's axes with the policy's wording. Raises UserError if an axis has other poles for the policy."""
    return replace(ref, space=worded_as(ref.space, manifest.space))


def rejected_by_reason(rejects: Sequence[Reject]) -> dict[str, int]:
    return dict(sorted(Counter(reject.reason for reject in rejects).items()))


def digests_of(ref: ModelRef, data_digest: str) -> dict[str, str | None]:
    """Return digests of everything that decides the numbers, so that they can be reproduced."""
    return {
        "model": digest(ref.config_digest or ref.base_digest or ref.base),
        "adapter_sha256": ref.adapter_sha256,
        "adapter_config_sha256": ref.adapter_config_sha256,
        "data": data_digest,
        "training_data": ref.data_digest or None,
        "template": ref.template_digest,
        "code": code_digest(),
    }
