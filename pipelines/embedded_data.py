"""The embedded data set and base model that `data=toyworld` and `model=toyworld` select."""

from pathlib import Path

from pft_core.data import Split
from pft_core.policies import TOYWORLD
from pipelines.config import RunConfig
from pipelines.prepare import job as prepare

NUM_PER_AXIS: dict[Split, int] = {"train": 1600, "validation": 100, "test": 320}


def with_embedded(config: RunConfig) -> RunConfig:
    """Replace the data name `toyworld` by its prepared folder below the storage folder; make local paths absolute.

    The model name `toyworld` stays a name, since its folder differs between machines and between job uploads.
    """
    return config.model_copy(
        update={
            "model": config.model if config.model == TOYWORLD else absolute(config.model),
            "data": embedded_data(config, "train") if config.data == TOYWORLD else absolute(config.data),
            "validation_data": (
                embedded_data(config, "validation")
                if config.validation_data == TOYWORLD
                else absolute(config.validation_data)
            ),
        }
    )


def absolute(path: str | None) -> str | None:
    """Return an existing local path as absolute, since workers run in other folders; keep a hub name."""
    return str(Path(path).resolve()) if path is not None and Path(path).exists() else path


def embedded_data(config: RunConfig, split: Split) -> str:
    """Prepare one split of the embedded data; return its folder."""
    output = Path(config.storage).resolve() / TOYWORLD / f"{split}-seed{config.seed}"
    prepare.run(
        prepare.PrepareConfig(
            source="toyworld", output=str(output), split=split, seed=config.seed, num_per_axis=NUM_PER_AXIS[split]
        ),
        fresh=True,
    )
    return str(output)
