"""Checks for the inputs of a comparison, made before Ray or transformers are imported."""

import os
from pathlib import Path

from pft_core.errors import UserError
from pft_core.files import refuse_unwritable
from pft_core.policies import TOYWORLD, refuse_unusable_model
from pipelines.compare.suite import FILES, Suite

TEXT_BASE = "text"  # a tiny model trained on the texts of the data


def refuse_missing_inputs(suite: Suite, size: str, storage: Path) -> None:
    """Raise UserError if the suite lacks the size, its data or base model is missing, or the storage is not writable.

    Prepared data is checked when the suite is read.
    """
    chosen = {str(name): settings for name, settings in suite.sizes.items()}.get(size)
    if chosen is None:
        raise UserError(f"suite {suite.name!r} has no size {size!r}: choose {' or '.join(suite.sizes)}")
    if chosen.data in FILES:
        refuse_missing(chosen.data)
    refuse_unwritable(storage)
    if chosen.base not in (TOYWORLD, TEXT_BASE):
        refuse_unusable_model(chosen.base, wants_chat=False)


def refuse_missing(name: str) -> None:
    """Raise UserError if the released files of a data set are not in the folder PFT_DATA."""
    folder = os.environ.get("PFT_DATA")
    if name != TOYWORLD and not (folder and released_files(name, "train")):
        raise UserError(
            f"PFT_DATA={folder or ''} holds no {FILES[name]['train']}: set it to the folder of the released data"
            + (", or unset it for the embedded data at size tiny" if folder else "")
        )


def released_files(name: str, split: str) -> list[str]:
    return [str(path) for path in sorted(Path(os.environ["PFT_DATA"]).glob(FILES[name][split]))]
