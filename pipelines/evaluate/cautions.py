"""What a reader of an evaluation must know of the policy: what it was tested on before, and what it never saw."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pft_core.data import DatasetManifest, read_trained_scenarios, scenarios_of
from pft_core.policies import MODEL_REF_NAME, ModelRef
from pipelines.evaluate.evaluate_config import EvaluateConfig, weights_reference


def cautions(
    config: EvaluateConfig, trained: ModelRef | None, manifest: DatasetManifest | None, *, policy: str
) -> list[str]:
    """Return the sentences. trained: tells how the policy was trained, None where nothing does.

    manifest: of the data, None where these are no prepared records.
    """
    found = [other_adapter(config, policy)] if config.adapter is not None else []
    if manifest is not None and trained is not None:
        found.append(trained_on(trained, Path(config.data), manifest, policy=policy))
        found.append(never_trained(trained, (axis.name for axis in manifest.space.axes), policy=policy))
    return [sentence for sentence in found if sentence]


def other_adapter(config: EvaluateConfig, policy: str) -> str:
    described = weights_reference(config)
    told = f"told by the {MODEL_REF_NAME} beside it" if described else "not known"
    where = f"{policy} is the adapter {config.adapter} on the base of {config.model}, by --adapter"
    return f"{where}: what it was trained on is {told}."


def trained_on(ref: ModelRef, data: Path, manifest: DatasetManifest, *, policy: str) -> str:
    """Say how much of the data the policy was trained on: by scenarios, and by digests where it does not tell these."""
    place = ref.adapter or ref.weights
    kept = read_trained_scenarios(Path(place).parent) if place else None
    scenarios = scenarios_of(data, manifest)
    if kept is not None:
        num_shared = len(np.intersect1d(kept, scenarios, assume_unique=True))
    else:
        num_shared = len(scenarios) if ref.data_digest == manifest.data_digest else 0
    return trained_before(policy, num_shared, len(scenarios), "tested on")


def trained_before(policy: str, num_shared: int, num_scenarios: int, used_for: str) -> str:
    if not num_shared:
        return ""
    return (
        f"{policy} was trained on {num_shared} of the {num_scenarios} scenarios that it is {used_for}: its numbers say "
        "how well these are remembered, not how it does on new ones."
    )


def never_trained(ref: ModelRef, axes: Iterable[str], *, policy: str) -> str:
    """Name the axes that the policy is asked about and was never trained on."""
    unknown = [axis for axis in axes if axis not in {known.name for known in ref.space.axes}]
    return f"{policy} was never trained on {', '.join(unknown)}." if unknown else ""
