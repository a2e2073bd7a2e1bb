"""Check the inputs of a training run by a few small files, before Ray or transformers are imported."""

import math
from pathlib import Path

from pft_core.data import DatasetManifest, opened
from pft_core.errors import UserError
from pft_core.files import refuse_unwritable
from pft_core.policies import refuse_unusable_model
from pipelines.config import EMBEDDED_DATA, TOYWORLD, RunConfig
from pipelines.console import console
from pipelines.jobs import refuse_unusable_environment


def refuse_missing_inputs(config: RunConfig, *, is_searched: bool = False) -> dict[str, DatasetManifest]:
    """Raise UserError if data or model are missing or the storage cannot be written; return the manifests by folder.

    is_searched: whether a search needs validation data to pick a ratio.
    """
    if config.data is None:
        raise UserError("data is not set: add data=DIR, a folder written by `pft prepare`")
    if config.model is None:
        raise UserError("model is not set: add model=DIR_OR_NAME, a Hugging Face causal language model")
    if is_searched and config.validation_data is None and config.data not in EMBEDDED_DATA:
        raise UserError("validation_data is not set, but the search picks the ratio on it: add validation_data=DIR")
    if config.train.validate_every and config.validation_data is None:
        raise UserError("train.validate_every is set, but validation_data is not: add validation_data=DIR")
    folders = [data for data in (config.data, config.validation_data) if data not in (None, *EMBEDDED_DATA)]
    manifests = {str(folder.resolve()): manifest for folder, manifest in opened(*folders)}
    for folder, manifest in manifests.items():
        manifest.refuse_one_pole(folder)
    refuse_unwritable(Path(config.storage))
    if config.model != TOYWORLD:
        refuse_unusable_model(config.model, wants_chat=config.prompt.template == "chat")
    elif config.prompt.template == "chat":
        raise UserError(
            f"prompt.template=chat, but tokenizer {config.model!r} has no chat template: set prompt.template=plain"
        )
    refuse_unusable_environment()
    return manifests


def warn_of_long_warmup(config: RunConfig, manifest: DatasetManifest) -> None:
    """Warn if the run ends before its learning rate has reached train.lr."""
    train = config.train
    steps = math.ceil(train.total_pairs(manifest.pairs_out) / train.pairs_per_step)
    if train.warmup_steps >= steps:
        console.print(
            f"train.warmup_steps={train.warmup_steps}, but the run has {steps} steps: its learning rate never reaches "
            f"train.lr={train.lr:g}; lower train.warmup_steps",
            style="yellow",
            highlight=False,
        )
