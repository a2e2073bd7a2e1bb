"""Train in this process, without Ray Train: what warm one-process actors run."""

from collections.abc import Callable
from pathlib import Path

import torch

from pft_core.data import DatasetManifest
from pft_core.policies import ModelRef
from pft_core.training import LocalContext
from pipelines.config import RunConfig
from pipelines.train.objective import axis_names
from pipelines.train.publish import publish_policy
from pipelines.train.worker import Payload, build_and_fit


def train_here(
    config: RunConfig,
    layer: str,
    folder: Path,
    *,
    log: Callable[[int, dict[str, float]], None],
    device: torch.device,
    validation_layer: str | None = None,
) -> tuple[ModelRef, int]:
    """Train, or continue from the folder's newest checkpoint, and publish the policy there.

    Returns its reference, with the adapter's place in it, and the number of steps of the whole run.
    """
    context = LocalContext(folder / "checkpoints", device=device, log=log)
    axes = axis_names(DatasetManifest.load(Path(str(config.data))).space)
    result = build_and_fit(Payload(config, axes, layer, validation_layer), context)
    saved = context.latest_checkpoint()
    assert saved is not None, "a run ends with a checkpoint"
    publish_policy(config, saved, folder)
    return ModelRef.load(folder), result.steps
