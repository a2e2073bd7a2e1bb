"""Facts about a policy's training for the card: settings, steps, and the data set if it is still there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pft_core.data import DatasetManifest, Presentation, read_records
from pft_core.errors import UserError
from pft_core.files import read_json
from pft_core.objectives import OBJECTIVES
from pft_core.policies import ModelRef
from pipelines.jobs import CONFIG_NAME, JOB_NAME
from pipelines.tracking import flatten

SETTINGS = (
    "train.objective", "train.normalization", "train.lr", "train.schedule", "train.warmup_steps",
    "train.pairs_per_step", "train.epochs", "train.max_steps", "train.precision", "train.weight_decay",
    "train.max_grad_norm", "lora.r", "lora.alpha", "lora.dropout", "lora.target_modules", "encoding.max_length", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingFacts:
    """The training of a policy. settings: by config key. manifest: of the training data, None if it is not there.

    presentation: how the first record presents its options, None if unknown.
    """

    settings: dict[str, str]
    steps: int | None
    pairs: int | None
    manifest: DatasetManifest | None
    presentation: Presentation | None


def training_facts(run_dir: Path, ref: ModelRef) -> TrainingFacts:
    """Return what a run's folder says about its training; a folder that was moved may say less."""
    file = run_dir / CONFIG_NAME
    config = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    job = run_dir / JOB_NAME
    result = read_json(job, what="the state of a run").get("result", {}) if job.is_file() else {}
    manifest, presentation = _data_of(config, ref)
    return TrainingFacts(
        _settings_of(flatten(config)), result.get("steps"), result.get("pairs"), manifest, presentation
    )


def _settings_of(flat: dict[str, str]) -> dict[str, str]:
    """Return the settings that had an effect, by their dotted keys."""
    objective = flat.get("train.objective", "")
    knobs = OBJECTIVES[objective].knobs if objective in OBJECTIVES else ()
    keys = (*SETTINGS[:1], *(f"train.{knob}" for knob in knobs), *SETTINGS[1:])
    unused = {"train.epochs"} if flat.get("train.max_steps", "null") != "null" else set()
    return {key: flat[key] for key in keys if flat.get(key, "null") != "null" and key not in unused}


def _data_of(config: dict[str, Any], ref: ModelRef) -> tuple[DatasetManifest | None, Presentation | None]:
    """Return the manifest of the training data and the presentation of its first record, if it is still there."""
    folder = Path(str(config.get("data")))
    try:
        manifest = DatasetManifest.load(folder)
        if manifest.data_digest != ref.data_digest:
            return None, None
        return manifest, next((record.presentation for record in read_records(folder, manifest)), None)
    except UserError:
        return None, None
