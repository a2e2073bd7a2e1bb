"""The policy, items and answer settings that the config of an evaluation describes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pft_core.data import DatasetManifest, Form, PreferenceSpace, drawn, read_records, worded_as
from pft_core.errors import UserError
from pft_core.evaluation import BASE_ANSWERS_NAME, TASKS, AnswerSettings
from pft_core.policies import (
    ModelRef,
    Precision,
    adapter_digests,
    is_gguf_name,
    model_identity,
    model_place,
    refuse_other_adapter,
    within_positions,
)
from pft_core.prompts import template_digest
from pipelines.config import warn_if_bf16_is_slow
from pipelines.encode import ModelTokenizer
from pipelines.evaluate.answering_actors import Item
from pipelines.evaluate.answering_job import AnsweringJob
from pipelines.evaluate.evaluate_config import EvaluateConfig, trained_reference, weights_reference
from pipelines.jobs import fair_threads, has_gpus


def trained_poles(config: EvaluateConfig) -> dict[str, set[int]] | None:
    """Return the trained sides of each axis; None for a plain model, whose training is unknown."""
    trained = weights_reference(config)
    return None if trained is None else poles_of(trained)


def poles_of(ref: ModelRef) -> dict[str, set[int]]:
    return {axis.name: set(ref.trained_sides) for axis in ref.space.axes}


def resolve_policy(config: EvaluateConfig, manifest: DatasetManifest | None) -> ModelRef:
    """Return the policy with its prompt style and space: the reference's, or else the config's and the data's.

    manifest: None for data other than prepared records, which have no space.
    """
    trained = trained_reference(config)
    if trained is not None:
        ref = replace(trained, space=worded_as(trained.space, manifest.space)) if manifest else trained
    else:
        model = str(config.model)
        style = ModelTokenizer(model).facts(config.prompt).style
        base = str(model_place(model) or model)
        space = manifest.space if manifest else PreferenceSpace("none", ())
        ref = ModelRef(base, None, None, style, space, (), "", "", "", None, base_digest=model_identity(base))
    if config.scoring is not None and config.scoring != "generate":
        ref = replace(ref, style=replace(ref.style, answer=config.scoring))
    if config.adapter is not None:
        ref = with_adapter(ref, config)
    ref = replace(ref, template_digest=template_digest(ref.style, ref.space))
    if ref.adapter is None:
        return ref
    digests, trained = adapter_digests(Path(ref.adapter)), weights_reference(config)
    if trained is not None:
        refuse_other_adapter(trained, digests, name=ref.adapter)
    return replace(ref, **digests)


def with_adapter(ref: ModelRef, config: EvaluateConfig) -> ModelRef:
    """Replace the adapter by the config's; its training is known only if its own run folder records it."""
    own = weights_reference(config)
    sides, data, run = (own.trained_sides, own.data_digest, own.config_digest) if own else ((), "", "")
    adapter = str(Path(str(config.adapter)).resolve())
    return replace(ref, adapter=adapter, trained_sides=sides, data_digest=data, config_digest=run)


def policy_name(config: EvaluateConfig) -> str:
    if config.endpoint is not None:
        return config.policy or config.model or "served"
    given = Path(config.adapter or str(config.model))
    if is_gguf_name(given):
        return config.policy or given.name
    path = given.resolve()
    in_run = path.is_file() or (config.adapter is not None and weights_reference(config) is not None)
    return config.policy or (path.parent.name if in_run else path.name)


def read_items(
    folder: Path,
    manifest: DatasetManifest,
    *,
    forms: Sequence[Form] | None,
    limit_per_axis: int | None,
    seed: int = 0,
) -> list[Item]:
    """Read records in order, and repeat them for each form of question.

    limit_per_axis: the number of records to draw of each axis with the seed; None: all.
    """
    read = read_records(folder, manifest)
    records = list(read) if limit_per_axis is None else drawn(read, limit_per_axis, seed=seed)
    return [(record, form) for form in forms or manifest.forms for record in records]


def refuse_too_few_scenarios(items: Sequence[Item], *, advice: str) -> None:
    """Raise UserError, before anything runs, if an axis has too few scenarios for an interval."""
    scenarios: dict[str, set[str]] = {}
    for record, _ in items:
        scenarios.setdefault(record.axis, set()).add(record.scenario)
    for axis, names in scenarios.items():
        if len(names) < 2:
            raise UserError(f"{axis!r}: an interval needs at least 2 scenarios, the data has {len(names)}: {advice}")


def answer_settings_of(config: EvaluateConfig, ref: ModelRef) -> AnswerSettings:
    max_length = within_positions(config.max_length, ref.weights or ref.base)
    return AnswerSettings(ref.style, ref.space, max_length, config.tokens_per_batch, config.max_new_tokens)


def with_precision(config: EvaluateConfig) -> EvaluateConfig:
    """Set the precision that null stands for on this cluster, so that report and request name it.

    It stays null for a server, which sets its own. Say so if a given bf16 is slow on CPUs.
    """
    if config.endpoint is not None:
        return config
    if config.precision == "bf16" and not runs_on_gpus(config):
        warn_if_bf16_is_slow("precision")
    return config.model_copy(update={"precision": precision_of(config)})


def precision_of(config: EvaluateConfig) -> Precision:
    return config.precision or ("bf16" if runs_on_gpus(config) else "fp32")


def runs_on_gpus(config: EvaluateConfig) -> bool:
    return has_gpus() if config.use_gpu is None else config.use_gpu


def make_job(config: EvaluateConfig, ref: ModelRef) -> AnsweringJob:
    return AnsweringJob(
        ref,
        answer_settings_of(config, ref),
        config.scoring == "generate",
        precision_of(config),
        runs_on_gpus(config),
        fair_threads(config.num_workers) if config.threads_per_worker == "auto" else config.threads_per_worker,
        Path(config.data).resolve() / BASE_ANSWERS_NAME if TASKS[config.task].asks_records else None,
    )
