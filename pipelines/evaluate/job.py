"""Evaluate a policy: Ray Data actors hold the model and ask every item; the report's rows are made here."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import PositiveInt, model_validator

from pft_core.data import (
    MANIFEST_NAME,
    DatasetManifest,
    Form,
    PreferenceSpace,
    Reject,
    read_records,
    worded_as,
)
from pft_core.errors import UserError
from pft_core.evaluation import (
    METRICS,
    OUTCOMES_NAME,
    TASKS,
    Asking,
    Task,
    TaskItem,
    report_rows,
    scored,
    task_rows,
)
from pft_core.files import digest, file_sha256, write_lines
from pft_core.policies import MODEL_REF_NAME, ModelRef
from pft_core.prompts import PromptSettings, template_digest
from pipelines.console import console
from pipelines.encode.job import read_tokenizer
from pipelines.evaluate.endpoint import Served
from pipelines.evaluate.in_process import ask_here
from pipelines.evaluate.pool import ask_on_ray, ask_task_on_ray
from pipelines.evaluate.worker import Item, Job
from pipelines.jobs import code_digest, ensure_ray, has_gpus
from pipelines.plugins import PluggedSettings
from pipelines.reporting import write_report

REJECTS_NAME = "rejects.jsonl"


class EvaluateConfig(PluggedSettings):
    """What to evaluate, on which prepared data, and how to ask."""

    model: str | None = None  # a model reference (file or folder), a model folder, or a hub name; a served one's name
    endpoint: str | None = None  # URL of a `pft serve`, which is asked instead of a model that is loaded here
    adapter: str | None = None  # None: the reference's
    task: str = "choices"  # what is asked: a registered task
    data: str  # a folder written by `pft prepare`; for another task what it reads
    output: str
    policy: str | None = None  # its name in the report; None: the name of the model's folder
    scoring: Literal["letter", "option", "generate"] | None = None  # None: likelihood, in the answer style of training
    prompt: PromptSettings = PromptSettings()  # for a model without a reference
    forms: list[Form] | None = None  # None: the data set's
    limit_per_axis: PositiveInt | None = None  # None: every item
    max_length: PositiveInt = 2048  # tokens of prompt and answer; longer items are rejected
    max_new_tokens: PositiveInt = 256
    tokens_per_batch: PositiveInt = 8192
    num_workers: PositiveInt = 1
    threads_per_worker: PositiveInt = 1
    use_gpu: bool | None = None  # None: where the cluster has GPUs
    precision: Literal["bf16", "fp32"] | None = None  # None: bf16 on GPUs, fp32 on CPUs

    @model_validator(mode="after")
    def _the_task_is_there_and_can_be_asked_so(self) -> Self:
        options = {"endpoint": self.endpoint, "forms": self.forms, "scoring": self.scoring}
        given = [
            name for name, value in {**options, "limit_per_axis": self.limit_per_axis}.items() if value is not None
        ]
        if not TASKS[self.task].asks_records and given:
            raise ValueError(f"task={self.task} has questions of its own: leave {', '.join(given)} out")
        return self

    @model_validator(mode="after")
    def _someone_is_asked(self) -> Self:
        if self.endpoint is None and self.model is None:
            raise ValueError("model is not set: give --model, or --endpoint of a server")
        if self.endpoint is not None and self.adapter is not None:
            raise ValueError("adapter and endpoint: a server has its own adapters: give --model NAME as it lists them")
        return self


@dataclass(frozen=True)
class Found:
    """What asking a policy has found. lines: each answer as JSON; ask_s, statistics_s: seconds."""

    rows: list[dict[str, Any]]
    num_items: int
    lines: list[str]
    rejects: list[Reject]
    digests: dict[str, str | None]
    ask_s: float
    statistics_s: float


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate one policy; write report.json, report.html, and every outcome and reject. Result: report_json."""
    task = TASKS[config.task]
    found = of_records(config) if task.asks_records else of_task(config, task)
    report = {
        "rows": found.rows,
        "items": {
            "in": found.num_items,
            "out": len(found.lines),
            "rejected": len(found.rejects),
            "rejected_by_reason": rejected_by_reason(found.rejects),
        },
        "timings": {"ask": found.ask_s, "statistics": found.statistics_s},
        "config": config.model_dump(),
        "digests": found.digests,
    }
    report_json, _ = write_report(report, Path(config.output))
    write_lines(Path(config.output) / OUTCOMES_NAME, found.lines)
    write_lines(Path(config.output) / REJECTS_NAME, [json.dumps(asdict(reject)) for reject in found.rejects])
    return {"report_json": str(report_json)}


def of_records(config: EvaluateConfig) -> Found:
    """Ask prepared records under both poles and under none; the rows are those of the metrics."""
    manifest = DatasetManifest.load(Path(config.data))
    served = None if config.endpoint is None else served_policy(config, manifest)
    ref = served.ref if served else resolve_policy(config, manifest)
    items = read_items(Path(config.data), manifest, forms=config.forms, limit_per_axis=config.limit_per_axis)
    if served is None:
        ensure_ray()
    started = time.perf_counter()
    if served is not None:
        outcomes, rejects = ask_here(items, served.answer, served.base_answer)
    else:
        outcomes, rejects = ask_on_ray(items, make_job(config, ref), num_workers=config.num_workers)
    refuse_all_rejected(config, len(items), len(outcomes), rejects)
    asked = time.perf_counter()
    trained = poles_of(ref) if served else trained_poles(config)
    rows = report_rows(outcomes, policy=policy_name(config), space=ref.space, trained_poles=trained)
    if served and not served.has_base:  # what a policy has of its base cannot be told without the base
        rows = [row for row in rows if not METRICS[row["metric"]].needs_base]
    lines = [outcome.to_json() for outcome in outcomes]
    digests = digests_of(ref, manifest.data_digest)
    return Found(rows, len(items), lines, rejects, digests, asked - started, time.perf_counter() - asked)


def of_task(config: EvaluateConfig, task: Task) -> Found:
    """Ask the items of a task; its rows have its name as their metric."""
    data = Path(config.data)
    manifest = DatasetManifest.load(data) if (data / MANIFEST_NAME).is_file() else None
    ref = resolve_policy(config, manifest)
    read = task.read(data, asking_of(config, ref))
    items = [item for item in read if isinstance(item, TaskItem)]
    ensure_ray()
    started = time.perf_counter()
    replies, rejects = ask_task_on_ray(items, make_job(config, ref), num_workers=config.num_workers)
    rejects = [item for item in read if isinstance(item, Reject)] + rejects
    refuse_all_rejected(config, len(read), len(replies), rejects)
    asked = time.perf_counter()
    found = [scored(task, items[place], reply) for place, reply in sorted(replies.items())]
    rows = task_rows(
        config.task, found, policy=policy_name(config), space=ref.space, trained_poles=trained_poles(config)
    )
    digests = digests_of(
        ref, manifest.data_digest if manifest else digest([[i.id, i.prompt, i.answers] for i in items])
    )
    lines = [each.to_json() for each in found]
    return Found(rows, len(read), lines, rejects, digests, asked - started, time.perf_counter() - asked)


def refuse_all_rejected(config: EvaluateConfig, num_items: int, num_answered: int, rejects: Sequence[Reject]) -> None:
    """Say how many items were answered. Raises UserError for none."""
    console.print(f"{num_items} items asked, {num_answered} answered, {len(rejects)} rejected")
    if not num_answered:
        raise UserError(f"{config.data}: every item was rejected {rejected_by_reason(rejects)}: see max_length, forms")


def served_policy(config: EvaluateConfig, manifest: DatasetManifest) -> Served:
    """Return the policy behind config.endpoint. Raises UserError where it asks in other words than config wants."""
    served = Served.at(str(config.endpoint), config.model, scoring=config.scoring, max_new_tokens=config.max_new_tokens)
    return replace(served, ref=replace(served.ref, space=worded_as(served.ref.space, manifest.space)))


def trained_reference(config: EvaluateConfig) -> ModelRef | None:
    """Return the reference that `model` names, None where it is a plain model."""
    path = Path(str(config.model)).resolve()
    return ModelRef.load(path) if path.is_file() or (path / MODEL_REF_NAME).is_file() else None


def trained_poles(config: EvaluateConfig) -> dict[str, set[int]] | None:
    """Return the trained sides of each axis; None for a plain model, of which nothing is known."""
    trained = trained_reference(config)
    return None if trained is None else poles_of(trained)


def poles_of(ref: ModelRef) -> dict[str, set[int]]:
    return {axis.name: set(ref.trained_sides) for axis in ref.space.axes}


def resolve_policy(config: EvaluateConfig, manifest: DatasetManifest | None) -> ModelRef:
    """Return the policy with the words it is asked in: a reference's own, else the config's and the data set's.

    manifest: None where the data are no prepared records, and have no words.
    """
    trained = trained_reference(config)
    if trained is not None:
        ref = replace(trained, space=worded_as(trained.space, manifest.space)) if manifest else trained
    else:
        model = str(config.model)
        style = read_tokenizer(model, config.prompt).style
        base = str(Path(model).resolve()) if Path(model).is_dir() else model
        space = manifest.space if manifest else PreferenceSpace("none", ())
        ref = ModelRef(base, None, None, style, space, (), "", "", "", None)
    if config.scoring is not None and config.scoring != "generate":
        ref = replace(ref, style=replace(ref.style, answer=config.scoring))
    if config.adapter is not None:
        ref = replace(ref, adapter=str(Path(config.adapter).resolve()))
    return replace(ref, template_digest=template_digest(ref.style, ref.space), adapter_sha256=adapter_sha256(ref))


def adapter_sha256(ref: ModelRef) -> str | None:
    if ref.adapter is None:
        return None
    path = Path(ref.adapter) / "adapter_model.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: no such file; an adapter is a folder written by `pft train` or by peft")
    return file_sha256(path)


def policy_name(config: EvaluateConfig) -> str:
    if config.endpoint is not None:
        return config.policy or config.model or "served"
    path = Path(config.adapter or str(config.model)).resolve()
    return config.policy or (path.parent.name if path.is_file() else path.name)


def read_items(
    folder: Path, manifest: DatasetManifest, *, forms: Sequence[Form] | None, limit_per_axis: int | None
) -> list[Item]:
    """Read the records, in record order and at most `limit_per_axis` of each axis, once per form of question."""
    records = list(read_records(folder, manifest, per_axis=limit_per_axis))
    asked: Sequence[Form] = forms or manifest.forms  # type: ignore[assignment]
    return [(record, form) for form in asked for record in records]


def refuse_too_few_scenarios(items: Sequence[Item], *, advice: str) -> None:
    """Raise UserError, before anything runs, for an axis whose scenarios are too few for an interval."""
    scenarios: dict[str, set[str]] = {}
    for record, _ in items:
        scenarios.setdefault(record.axis, set()).add(record.scenario)
    for axis, found in scenarios.items():
        if len(found) < 2:
            raise UserError(f"{axis!r}: an interval needs at least 2 scenarios, the data has {len(found)}: {advice}")


def asking_of(config: EvaluateConfig, ref: ModelRef) -> Asking:
    return Asking(ref.style, ref.space, config.max_length, config.tokens_per_batch, config.max_new_tokens)


def make_job(config: EvaluateConfig, ref: ModelRef) -> Job:
    use_gpu = has_gpus() if config.use_gpu is None else config.use_gpu
    precision = config.precision or ("bf16" if use_gpu else "fp32")
    return Job(ref, asking_of(config, ref), config.scoring == "generate", precision, use_gpu, config.threads_per_worker)


def rejected_by_reason(rejects: Sequence[Reject]) -> dict[str, int]:
    return dict(sorted(Counter(reject.reason for reject in rejects).items()))


def digests_of(ref: ModelRef, data_digest: str) -> dict[str, str | None]:
    """Everything that decides the numbers, so that they can be found again."""
    return {
        "model": digest(ref.config_digest or ref.base),
        "adapter_sha256": ref.adapter_sha256,
        "data": data_digest,
        "training_data": ref.data_digest or None,
        "template": ref.template_digest,
        "code": code_digest(),
    }
