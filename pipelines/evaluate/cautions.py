"""Cautions about an evaluation: test scenarios from training, axes that were never trained, and few scenarios."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pft_core.data import DatasetManifest, PreferenceSpace, read_trained_scenarios, scenarios_of
from pft_core.evaluation import METRICS, MIN_CLUSTERS, EvaluationRow, metrics_where
from pft_core.policies import MODEL_REF_NAME, ModelRef
from pipelines.evaluate.evaluate_config import EvaluateConfig, weights_reference


def cautions(
    config: EvaluateConfig,
    trained: ModelRef | None,
    manifest: DatasetManifest | None,
    *,
    policy: str,
    rows: Sequence[EvaluationRow] = (),
) -> list[str]:
    """Return the cautions as sentences.

    trained: the reference that records the policy's training, None if there is none. manifest: the manifest of the
    data, None for data other than prepared records. rows: those of metrics of prepared records.
    """
    sentences = [other_adapter(config, policy)] if config.adapter is not None else []
    if manifest is not None:
        sentences.append(one_pole(manifest.space, policy=policy))
    if manifest is not None and trained is not None:
        sentences.append(trained_on(trained, Path(config.data), manifest, policy=policy))
        sentences.append(never_trained(trained, (axis.name for axis in manifest.space.axes), policy=policy))
    return [sentence for sentence in [*sentences, few_scenarios(rows)] if sentence]


def one_pole(space: PreferenceSpace, *, policy: str) -> str:
    """Name the axes without a second pole, and the metrics that are not defined on them."""
    if not space.one_pole_axes:
        return ""
    names = metrics_where(counts_outcomes=True, in_evaluation=True, has_poles=False)
    labels = ", ".join(METRICS[name].label for name in names)
    return (
        f"{policy} was asked about the only pole of {', '.join(space.one_pole_axes)}, which no prompt states. Without "
        f"a second pole, these metrics are not defined: {labels}."
    )


def other_adapter(config: EvaluateConfig, policy: str) -> str:
    reference = weights_reference(config)
    source = f"known from the {MODEL_REF_NAME} beside it" if reference else "unknown"
    policy_is = f"{policy} is the adapter {config.adapter} (--adapter) on the base of {config.model}"
    return f"{policy_is}: its training data is {source}."


def trained_on(ref: ModelRef, data: Path, manifest: DatasetManifest, *, policy: str) -> str:
    """Say how many test scenarios the policy was trained on, or compare data digests if scenarios are not stored."""
    place = ref.adapter or ref.weights
    trained = read_trained_scenarios(Path(place).parent) if place else None
    scenarios = scenarios_of(data, manifest)
    if trained is not None:
        num_shared = len(np.intersect1d(trained, scenarios, assume_unique=True))
    else:
        num_shared = len(scenarios) if ref.data_digest == manifest.data_digest else 0
    return trained_before(policy, num_shared, len(scenarios), "tested on")


def trained_before(policy: str, num_shared: int, num_scenarios: int, used_for: str) -> str:
    if not num_shared:
        return ""
    return (
        f"{policy} was trained on {num_shared} of the {num_scenarios} scenarios that it is {used_for}: its numbers "
        "show how well these are remembered, not how it answers new ones."
    )


def never_trained(ref: ModelRef, axes: Iterable[str], *, policy: str) -> str:
    """Name the axes of the data that the policy was never trained on."""
    unknown = [axis for axis in axes if axis not in {known.name for known in ref.space.axes}]
    return f"{policy} was never trained on {', '.join(unknown)}." if unknown else ""


def few_scenarios(rows: Iterable[EvaluationRow]) -> str:
    """Name the axes whose intervals come from too few scenarios to show how uncertain a value is."""
    by_axis = {str(row["axis"]): row.get("num_scenarios", row["n"]) for row in rows}
    few = [f"{axis}: {n} scenario{'s' * (n != 1)}" for axis, n in by_axis.items() if n < MIN_CLUSTERS]
    if not few:
        return ""
    return f"{'; '.join(few)}: fewer than {MIN_CLUSTERS} are too few for an interval to show how uncertain a value is."
