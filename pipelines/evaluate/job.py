"""Evaluate a policy: Ray Data actors hold the model and ask every item; the report's rows are made here.

Items go to the actors in fixed groups, so that the result does not depend on how many actors there are.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Self

import ray
import ray.data
from pydantic import PositiveInt, model_validator

from pft_core.data import DatasetManifest, Form, Reject, read_records, worded_as
from pft_core.errors import UserError
from pft_core.evaluation import Asking, Outcome, report_rows, write_outcomes
from pft_core.files import digest, file_sha256, write_text
from pft_core.policies import MODEL_REF_NAME, ModelRef, load_tokenizer
from pft_core.prompts import template_digest
from pipelines.config import PromptConfig, Section
from pipelines.console import console
from pipelines.encode.job import prompt_style
from pipelines.evaluate.endpoint import Served
from pipelines.evaluate.in_process import ask_here
from pipelines.evaluate.worker import Item, Job, PolicyActor, items_table
from pipelines.jobs import code_digest, ensure_ray, has_gpus, refuse_missing_resources
from pipelines.reporting import write_report

ITEMS_PER_GROUP = 64
REJECTS_NAME = "rejects.jsonl"


class EvaluateConfig(Section):
    """What to evaluate, on which prepared data, and how to ask."""

    model: str | None = None  # a model reference (file or folder), a model folder, or a hub name; a served one's name
    endpoint: str | None = None  # URL of a `pft serve`, which is asked instead of a model that is loaded here
    adapter: str | None = None  # None: the reference's
    data: str  # a folder written by `pft prepare`
    output: str
    policy: str | None = None  # its name in the report; None: the name of the model's folder
    scoring: Literal["letter", "option", "generate"] | None = None  # None: likelihood, in the answer style of training
    prompt: PromptConfig = PromptConfig()  # for a model without a reference
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
    def _someone_is_asked(self) -> Self:
        if self.endpoint is None and self.model is None:
            raise ValueError("model is not set: give --model, or --endpoint of a server")
        if self.endpoint is not None and self.adapter is not None:
            raise ValueError("adapter and endpoint: a server has its own adapters: give --model NAME as it lists them")
        return self


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate one policy; write report.json, report.html, and every outcome and reject. Result: report_json."""
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
    console.print(f"{len(items)} items asked, {len(outcomes)} answered, {len(rejects)} rejected")
    if not outcomes:
        raise UserError(f"{config.data}: every item was rejected {rejected_by_reason(rejects)}: see max_length, forms")
    asked = time.perf_counter()
    trained = poles_of(ref) if served else trained_poles(config)
    rows = report_rows(outcomes, policy=policy_name(config), space=ref.space, trained_poles=trained)
    if served and not served.has_base:  # what a policy has of its base cannot be told without the base
        rows = [row for row in rows if row["metric"] != "leak"]
    report = {
        "rows": rows,
        "items": {
            "in": len(items),
            "out": len(outcomes),
            "rejected": len(rejects),
            "rejected_by_reason": rejected_by_reason(rejects),
        },
        "timings": {"ask": asked - started, "statistics": time.perf_counter() - asked},
        "config": config.model_dump(),
        "digests": digests(ref, manifest),
    }
    report_json, _ = write_report(report, Path(config.output))
    write_outcomes(Path(config.output), outcomes)
    write_text(Path(config.output) / REJECTS_NAME, "".join(f"{json.dumps(asdict(reject))}\n" for reject in rejects))
    return {"report_json": str(report_json)}


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


def resolve_policy(config: EvaluateConfig, manifest: DatasetManifest) -> ModelRef:
    """Return the policy with the words it is asked in: a reference's own, else the config's and the data set's."""
    trained = trained_reference(config)
    if trained is not None:
        ref = replace(trained, space=worded_as(trained.space, manifest.space))
    else:
        model = str(config.model)
        style = prompt_style(config.prompt, load_tokenizer(model))
        base = str(Path(model).resolve()) if Path(model).is_dir() else model
        ref = ModelRef(base, None, None, style, manifest.space, (), "", "", "", None)
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


def make_job(config: EvaluateConfig, ref: ModelRef) -> Job:
    asking = Asking(ref.style, ref.space, config.max_length, config.tokens_per_batch, config.max_new_tokens)
    use_gpu = has_gpus() if config.use_gpu is None else config.use_gpu
    precision = config.precision or ("bf16" if use_gpu else "fp32")
    return Job(ref, asking, config.scoring == "generate", precision, use_gpu, config.threads_per_worker)


def ask_on_ray(items: Sequence[Item], job: Job, *, num_workers: int) -> tuple[list[Outcome], list[Reject]]:
    """Ask all items on a pool of actors. Raises UserError when the cluster is too small, or what an actor ran into."""
    resources = {"CPU": 1, "GPU": 1 if job.use_gpu else 0}
    refuse_missing_resources("num_workers", num_workers, resources)
    groups = [items_table(items[i : i + ITEMS_PER_GROUP]) for i in range(0, len(items), ITEMS_PER_GROUP)]
    console.print(f"evaluating {len(items)} items with {num_workers} workers")
    answered = ray.data.from_arrow(groups).map_batches(
        PolicyActor,
        fn_constructor_kwargs={"job": job},
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(num_workers, len(groups))),
        num_cpus=resources["CPU"],
        num_gpus=resources["GPU"],
    )
    return read_answers(answered.take_all())


def read_answers(rows: Sequence[Mapping[str, str | None]]) -> tuple[list[Outcome], list[Reject]]:
    """Sort what the actors returned. Raises UserError for a mistake that one of them met."""
    if faults := sorted({row["fault"] for row in rows if row["fault"]}):
        raise UserError(faults[0])
    outcomes = [Outcome.from_json(row["outcome"]) for row in rows if row["outcome"]]
    rejects = [Reject(**json.loads(row["reject"])) for row in rows if row["reject"]]
    return outcomes, rejects


def rejected_by_reason(rejects: Sequence[Reject]) -> dict[str, int]:
    return dict(sorted(Counter(reject.reason for reject in rejects).items()))


def digests(ref: ModelRef, manifest: DatasetManifest) -> dict[str, str | None]:
    """Everything that decides the numbers, so that they can be found again."""
    return {
        "model": digest(ref.config_digest or ref.base),
        "adapter_sha256": ref.adapter_sha256,
        "data": manifest.data_digest,
        "training_data": ref.data_digest or None,
        "template": ref.template_digest,
        "code": code_digest(),
    }
