"""Publish the policy of a finished training run: copy it out of the checkpoint and write the model reference."""

import shutil
from pathlib import Path

from pft_core.data import scenarios_of, write_trained_scenarios
from pft_core.files import digest, whole_folder
from pft_core.policies import ModelRef, adapter_digests
from pft_core.prompts import PromptStyle, template_digest
from pft_core.training import policy_folder
from pipelines.config import RunConfig
from pipelines.jobs import config_identity
from pipelines.train.resolved_run import ResolvedRun


def publish_policy(run: ResolvedRun, style: PromptStyle, saved: Path, run_dir: Path) -> ModelRef:
    """Copy the policy of a checkpoint folder into the run's folder and write model_ref.json."""
    config, space = run.config, run.manifest.space
    kind = policy_kind(config)
    copy_policy(saved, run_dir / kind)
    ref = ModelRef(
        base=str(config.model),
        adapter=kind if config.lora is not None else None,
        weights=kind if config.lora is None else None,
        style=style,
        space=space,
        trained_sides=run.objective.trained_sides,
        template_digest=template_digest(style, space),
        data_digest=run.manifest.data_digest,
        config_digest=digest(config_identity(config)),
        **(adapter_digests(run_dir / kind) if config.lora is not None else {"adapter_sha256": None}),
    )
    write_trained_scenarios(run_dir, scenarios_of(Path(str(config.data)), run.manifest))
    ref.save(run_dir)
    return ref


def policy_kind(config: RunConfig) -> str:
    """Return the name of the policy's folder in a run."""
    return "adapter" if config.lora is not None else "weights"


def copy_policy(saved: Path, target: Path) -> None:
    """Copy the policy of a checkpoint folder; the target appears complete or not at all."""
    with whole_folder(target) as unfinished:
        shutil.copytree(policy_folder(saved), unfinished, dirs_exist_ok=True)
