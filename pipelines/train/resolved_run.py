"""A training run with everything that its config names, read once for driver, workers and published policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pft_core.data import DatasetManifest
from pft_core.objectives import Objective, build_objective
from pft_core.prompts import PromptStyle
from pipelines.config import RunConfig
from pipelines.encode import ModelTokenizer
from pipelines.jobs import run_key


@dataclass(frozen=True)
class ResolvedRun:
    """A config and its inputs. validation: None if the config names no validation data."""

    config: RunConfig
    manifest: DatasetManifest
    validation: DatasetManifest | None
    objective: Objective
    tokenizer: ModelTokenizer

    @property
    def inputs(self) -> list[tuple[Path, DatasetManifest]]:
        """The prepared folders, with their manifests."""
        named = ((self.config.data, self.manifest), (self.config.validation_data, self.validation))
        return [(Path(folder), manifest) for folder, manifest in named if folder and manifest]

    def key(self, *, kind: str) -> str:
        """Return the run key: see `run_key`."""
        digests = [self.manifest.data_digest, self.validation.data_digest if self.validation else None]
        return run_key(self.config, kind=kind, data=digests)


@dataclass(frozen=True)
class RunLayers:
    """Folders of the encoded data, and its prompt style. validation: None if the run does not validate."""

    train: str
    validation: str | None
    style: PromptStyle


def resolve(config: RunConfig, known: Mapping[str, DatasetManifest] = MappingProxyType({})) -> ResolvedRun:
    """Read the inputs of a config. known: manifests read before, by absolute folder.

    Raises UserError if `pft prepare` did not write the data.
    """

    def manifest_in(folder: str) -> DatasetManifest:
        return known.get(str(Path(folder).resolve())) or DatasetManifest.load(Path(folder))

    manifest = manifest_in(str(config.data))
    validation = manifest_in(config.validation_data) if config.validation_data else None
    objective = build_objective(
        config.train,
        axes=[axis.name for axis in manifest.space.axes],
        reports_displacement=config.train.diagnostics_every > 0,
    )
    return ResolvedRun(config, manifest, validation, objective, ModelTokenizer(str(config.model)))
