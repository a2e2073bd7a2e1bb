"""Evaluate a policy: Ray Data actors hold the model and ask every item; the report's rows are made here."""

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
)
from pipelines.evaluate.in_process import ask_here
from pipelines.evaluate.pool import ask_all_on_ray, ask_task_on_ray
from pipelines.evaluate.report_examples import examples
from pipelines.evaluate.tracking import track
from pipelines.evaluate.worker import Item
from pipelines.jobs import code_digest, ensure_ray
from pipelines.reporting import REPORT_NAMES, Example, RunReport, write_report


@dataclass(frozen=True)
class EvaluationResult:
    """What asking a policy has found. ask_s, statistics_s: seconds."""

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

    fresh: whether an evaluation of something else in config.output is replaced.
    """
    refuse_other_output(config, fresh=fresh)
    task = TASKS[config.task]
    return run_all([config])[0] if task.asks_records else write(config, of_task(config, task))


def run_all(configs: Sequence[EvaluateConfig]) -> list[dict[str, Any]]:
    """Evaluate several policies on prepared records, on one pool of actors; as `run` for each."""
    asked = [RecordsEvaluation.of(config) for config in configs]
    here = [each.ask_here() for each in asked if each.served]
    on_ray = ask_on_pool([each for each in asked if not each.served])
    answers = [(here if each.served else on_ray).pop(0) for each in asked]
    for each, (outcomes, rejects, _) in zip(asked, answers, strict=True):
        keep(each.config, [outcome.to_json() for outcome in outcomes], rejects)
    return [write(each.config, each.found(*found)) for each, found in zip(asked, answers, strict=True)]


def keep(config: EvaluateConfig, lines: Sequence[str], rejects: Sequence[Reject]) -> None:
    """Write the answers before any number is made of them, as a metric may be a user's own and fail.

    The report of earlier answers goes, as it would be none of these. Without an answer all is left as it was.
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
    """Let a UserError of the numbers say that the answers are not lost."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error} (the outcomes are kept in {Path(config.output) / OUTCOMES_NAME})") from error


def write(config: EvaluateConfig, found: EvaluationResult) -> dict[str, Any]:
    """Write the report of what was found into config.output. Result: report_json."""
    report: RunReport = {
        "rows": found.rows,
        "items": {
            "in": found.num_items,
            "out": found.num_answered,
            "rejected": len(found.rejects),
            "rejected_by_reason": rejected_by_reason(found.rejects),
        },
        "timings": {"ask": found.ask_s, "statistics": found.statistics_s},
        "config": config.model_dump(exclude={"tracking"}),
        "digests": found.digests,
        "cautions": found.cautions,
        "examples": found.examples,
    }
    for caution in found.cautions:
        console.print(caution, style="yellow", highlight=False, soft_wrap=True)
    report_json, _ = write_report(report, Path(config.output))
    track(config, report)
    return {"report_json": str(report_json)}


@dataclass(frozen=True)
class RecordsEvaluation:
    """Prepared records that are to be asked under both poles and under none, and who is asked.

    served: by a server; trained: tells how the policy was trained, None where nothing does.
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
        items = read_items(Path(config.data), manifest, forms=config.forms, limit_per_axis=config.limit_per_axis)
        return RecordsEvaluation(config, manifest, served, trained, ref, items)

    def ask_here(self) -> tuple[list[Outcome], list[Reject], float]:
        """Ask the server; return outcomes, rejects and seconds."""
        assert self.served is not None, "only a served policy is asked from here"
        started = time.perf_counter()
        outcomes, rejects = ask_here(self.items, self.served.answer, self.served.base_answer)
        return outcomes, rejects, time.perf_counter() - started

    def found(self, outcomes: list[Outcome], rejects: list[Reject], ask_s: float) -> EvaluationResult:
        """Make the rows of the metrics. Raises UserError where every item was rejected."""
        config, started = self.config, time.perf_counter()
        refuse_all_rejected(config, len(self.items), len(outcomes), rejects)
        trained = None if self.trained is None else poles_of(self.trained)
        with saying_what_is_kept(config):
            rows = report_rows(outcomes, policy=policy_name(config), space=self.ref.space, trained_poles=trained)
        if self.served and not self.served.has_base:  # what a policy has of its base cannot be told without the base
            rows = [row for row in rows if not METRICS[row["metric"]].needs_base]
        digests = digests_of(self.ref, self.manifest.data_digest)
        seconds = time.perf_counter() - started
        shown = examples(outcomes, self.ref.space)
        said = cautions(config, self.trained, self.manifest, policy=policy_name(config))
        return EvaluationResult(rows, len(self.items), len(outcomes), rejects, digests, ask_s, seconds, said, shown)


def ask_on_pool(asked: Sequence[RecordsEvaluation]) -> list[tuple[list[Outcome], list[Reject], float]]:
    """Ask the policies that are loaded on the cluster; seconds are of all of them, shared evenly."""
    if not asked:
        return []
    ensure_ray()
    started = time.perf_counter()
    requests = [(each.items, make_job(each.config, each.ref)) for each in asked]
    answers = ask_all_on_ray(requests, num_workers=max(each.config.num_workers for each in asked))
    seconds = (time.perf_counter() - started) / len(asked)
    return [(outcomes, rejects, seconds) for outcomes, rejects in answers]


def of_task(config: EvaluateConfig, task: Task) -> EvaluationResult:
    """Ask the items of a task; its rows have its name as their metric."""
    data = Path(config.data)
    manifest = DatasetManifest.load(data) if (data / MANIFEST_NAME).is_file() else None
    ref = resolve_policy(config, manifest)
    read = task.read(data, answer_settings_of(config, ref))
    items = [item for item in read if isinstance(item, TaskItem)]
    ensure_ray()
    started = time.perf_counter()
    replies, rejects = ask_task_on_ray(items, make_job(config, ref), num_workers=config.num_workers)
    rejects = [item for item in read if isinstance(item, Reject)] + rejects
    refuse_all_rejected(config, len(read), len(replies), rejects)
    asked = time.perf_counter()
    answered = [(items[place], reply) for place, reply in sorted(replies.items())]
    keep(config, [reply_line(item, reply) for item, reply in answered], rejects)
    policy, trained = policy_name(config), trained_poles(config)
    with saying_what_is_kept(config):
        found = [scored(task, item, reply) for item, reply in answered]
        keep(config, [each.to_json() for each in found], rejects)
        rows = task_rows(config.task, found, policy=policy, space=ref.space, trained_poles=trained)
    digests = digests_of(
        ref, manifest.data_digest if manifest else digest([[i.id, i.prompt, i.answers] for i in items])
    )
    seconds = time.perf_counter() - asked
    said = cautions(config, weights_reference(config), manifest, policy=policy)
    return EvaluationResult(rows, len(read), len(found), rejects, digests, asked - started, seconds, said)


def refuse_all_rejected(config: EvaluateConfig, num_items: int, num_answered: int, rejects: Sequence[Reject]) -> None:
    """Say how many items were answered. Raises UserError for none."""
    console.print(f"{num_items} items asked, {num_answered} answered, {len(rejects)} rejected")
    if not num_answered:
        raise UserError(f"{config.data}: every item was rejected {rejected_by_reason(rejects)}: see max_length, forms")


def served_policy(config: EvaluateConfig) -> ServedPolicy:
    """Return the policy behind config.endpoint. Raises UserError where it asks in other words than config wants."""
    return ServedPolicy.at(
        str(config.endpoint), config.model, scoring=config.scoring, max_new_tokens=config.max_new_tokens
    )


def in_words_of(ref: ModelRef, manifest: DatasetManifest) -> ModelRef:
    """Ask about the data's axes. Raises UserError where one of them has other poles for the policy."""
    return replace(ref, space=worded_as(ref.space, manifest.space))


def rejected_by_reason(rejects: Sequence[Reject]) -> dict[str, int]:
    return dict(sorted(Counter(reject.reason for reject in rejects).items()))


def digests_of(ref: ModelRef, data_digest: str) -> dict[str, str | None]:
    """Everything that decides the numbers, so that they can be found again."""
    return {
        "model": digest(ref.config_digest or ref.base_digest or ref.base),
        "adapter_sha256": ref.adapter_sha256,
        "adapter_config_sha256": ref.adapter_config_sha256,
        "data": data_digest,
        "training_data": ref.data_digest or None,
        "template": ref.template_digest,
        "code": code_digest(),
    }
