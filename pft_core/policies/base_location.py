"""How a reference names its base, so that it opens wherever its folder goes.

What ships with the code goes by its name, a hub model by its own. Any other folder goes by the way to it from the
reference and by the digest of its content; where it was is a hint only, which counts where the content is the same.
"""

import os
from pathlib import Path
from typing import Any

from pft_core.errors import UserError
from pft_core.files import digest
from pft_core.policies.identity import is_as_marked, marks_of
from pft_core.policies.shipped_base import SHIPPED_BASE, TOYWORLD

BASE_MARKS = "base_marks"


def named_base(base: str, folder: Path) -> dict[str, Any]:
    """Return what a reference that lies in `folder` says of its base: `base` and, of a folder without a name, marks."""
    place, folder = Path(base).expanduser().resolve(), folder.resolve()
    if base == TOYWORLD or not place.is_dir():
        return {"base": base}
    if place == SHIPPED_BASE.resolve():
        return {"base": TOYWORLD}
    marks = {**marks_of(place), "written_in": digest(str(folder)), "place": str(place)}
    return {"base": f"./{os.path.relpath(place, folder)}", BASE_MARKS: marks}


def found_base(base: str, marks: dict[str, Any], folder: Path) -> str:
    """Return the folder or the name that loads as the base of a reference read in `folder`.

    A reference takes no folder for its base but one with the same content, also where it lies as it was left. Where
    there is no folder, where it was is returned, and loading it says so; raises UserError where another model lies
    there.
    """
    if not (marks and base.startswith("./")):
        return TOYWORLD if _was_shipped(Path(base)) else base
    here = folder.resolve()
    named = Path(os.path.normpath(here / base))
    others = [place for place in (named, Path(marks["place"]), here / named.name) if place.is_dir()]
    same = next((place for place in others if is_as_marked(place, marks)), None)
    if others and same is None:
        moved = "was moved, and " if digest(str(here)) != marks["written_in"] else ""
        raise UserError(
            f"{folder}: {moved}{others[0]} is not the base that it was trained on (weights, config or tokenizer "
            f"differ; digest {marks['digest']}): put that one at {here / named.name if moved else named}"
        )
    return str(same or marks["place"])


def _was_shipped(place: Path) -> bool:
    """Whether an older reference means the base that ships with the code: this one, or one that is gone by now."""
    if place.is_dir():
        return place.resolve() == SHIPPED_BASE.resolve()
    return place.is_absolute() and place.parts[-3:] == SHIPPED_BASE.parts[-3:]
