"""The data sets in the package that `data=toyworld` and `data=dilemmas` select, and the model `toyworld`."""

from pathlib import Path
from typing import Any

from pft_core.data import Split
from pft_core.policies import TOYWORLD, model_place
from pipelines.config import EMBEDDED_DATA, RunConfig
from pipelines.prepare import job as prepare

NUM_PER_AXIS: dict[str, int] = {"train": 1600, "validation": 100, "test": 320}  # of toyworld


def with_embedded(config: RunConfig) -> RunConfig:
    """Replace the name of an embedded data set by its prepared folder below the storage folder; make local paths
    absolute.

    The model names `toyworld` and `smollm2-135m` stay names, since their folders differ between machines and between
    job uploads.
    """
    return config.model_copy(
        update={
            "model": config.model and str(model_place(config.model) or config.model),
            "data": placed(config.data, config, "train"),
            "validation_data": placed(config.validation_data, config, "validation"),
        }
    )


def placed(data: str | None, config: RunConfig, split: Split) -> str | None:
    """Return the folder of a data set: that of an embedded one is prepared, any other is made absolute."""
    return embedded_data(data, config, split) if data in EMBEDDED_DATA else absolute(data)


def absolute(path: str | None) -> str | None:
    """Return an existing local path as absolute, since workers run in other folders; keep a name."""
    return str(Path(path).resolve()) if path is not None and Path(path).exists() else path


def embedded_data(name: str, config: RunConfig, split: str) -> str:
    """Prepare one split of an embedded data set; return its folder. Only toyworld is drawn by the seed."""
    made: dict[str, Any] = {"seed": config.seed, "num_per_axis": NUM_PER_AXIS[split]} if name == TOYWORLD else {}
    folder = f"{split}-seed{config.seed}" if made else split
    output = Path(config.storage).resolve() / name / folder
    prepare.run(prepare.PrepareConfig(source=name, output=str(output), split=split, **made), fresh=True)
    return str(output)
