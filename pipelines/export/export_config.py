"""The request for an export, and checks of its inputs, which read a few small files and import no model library."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pft_core.errors import UserError
from pft_core.files import contents, refuse_unwritable
from pft_core.policies import (
    MODEL_REF_NAME,
    ModelRef,
    adapter_digests,
    refuse_other_adapter,
    refuse_unusable_model,
)
from pipelines.export.own_reports import own_reports

Kind = Literal["adapter", "merged", "weights"]  # weights: those of a fully fine-tuned run


@dataclass(frozen=True)
class ExportConfig:
    """A run to export and where to. reports: evaluations for the model card; none: those beside the run."""

    run: Path
    to: Path
    merge: bool = False
    reports: tuple[Path, ...] = ()

    @property
    def run_dir(self) -> Path:
        """The folder of the run, which may be given by its reference."""
        place = self.run.resolve()
        return place if place.is_dir() else place.parent

    def kind_of(self, ref: ModelRef) -> Kind:
        """Return the kind of weights to write."""
        if ref.weights is not None:
            return "weights"
        return "merged" if self.merge else "adapter"


def refuse_missing_inputs(config: ExportConfig) -> ModelRef:
    """Return the run's reference. Raises UserError if a part of the run is missing or changed, a report is of another
    policy, or the folder to write is in use."""
    refuse_in_use(config.to)
    refuse_unwritable(config.to)
    ref = reference_of(config.run)
    refuse_unusable_model(ref.weights or ref.base, wants_chat=False)
    if ref.adapter is not None:
        refuse_other_adapter(ref, adapter_digests(Path(ref.adapter)), name=ref.adapter)
    own_reports(config.run_dir, ref, config.reports)
    return ref


def reference_of(run: Path) -> ModelRef:
    """Return the reference of a run, given by its folder or the file. Raises UserError if there is none."""
    place = run.resolve()
    if not place.exists():
        raise UserError(f"{run}: no such run: give the folder of a finished `pft train`")
    if place.is_dir() and not (place / MODEL_REF_NAME).is_file():
        inside = sorted(str(run / file.parent.name) for file in place.glob(f"*/{MODEL_REF_NAME}"))
        advice = f"give a run inside it: {', '.join(inside[:3])}" if inside else "finish it with `pft train` first"
        raise UserError(f"{run}: not a finished run, because it has no {MODEL_REF_NAME}: {advice}")
    return ModelRef.load(place)


def refuse_in_use(folder: Path) -> None:
    """Raise UserError if the folder to write holds anything."""
    if folder.is_dir() and contents(folder):
        raise UserError(f"--to {folder}: the folder is not empty: choose another one, or empty it")
