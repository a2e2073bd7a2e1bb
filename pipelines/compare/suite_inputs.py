"""What a comparison needs and lacks, found before Ray or transformers are imported."""

import os
from pathlib import Path

from pft_core.errors import UserError
from pft_core.files import refuse_unwritable
from pft_core.policies import TOYWORLD, refuse_unusable_model
from pipelines.compare.suite import FILES, Suite

TEXT_BASE = "text"  # a tiny model that is brought up on the data's texts


def refuse_missing_inputs(suite: Suite, size: str, storage: Path) -> None:
    """Say that the suite has no such size, or that its base model or room for its runs is not there. Raises UserError.

    That prepared data is there is checked as the suite is read.
    """
    chosen = {str(name): each for name, each in suite.sizes.items()}.get(size)
    if chosen is None:
        raise UserError(f"suite {suite.name!r} has no size {size!r}: it has {', '.join(suite.sizes)}")
    if chosen.data in FILES:
        refuse_missing(chosen.data)
    refuse_unwritable(storage)
    if chosen.base not in (TOYWORLD, TEXT_BASE):
        refuse_unusable_model(chosen.base, wants_chat=False)


def refuse_missing(name: str) -> None:
    """Raise UserError where the released files of a data set are not in the folder that PFT_DATA names."""
    folder = os.environ.get("PFT_DATA")
    if name != TOYWORLD and not (folder and released_files(name, "train")):
        raise UserError(
            f"PFT_DATA={folder or ''} holds no {FILES[name]['train']}: set it to the folder of the released data"
            + (", or unset it for the embedded data at size tiny" if folder else "")
        )


def released_files(name: str, split: str) -> list[str]:
    return [str(path) for path in sorted(Path(os.environ["PFT_DATA"]).glob(FILES[name][split]))]
