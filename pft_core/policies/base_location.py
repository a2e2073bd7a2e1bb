"""How a reference names its base, so that it still loads after its folder was moved.

The shipped base and hub models go by their names. Any other folder, and a GGUF file, goes by its path relative to the
reference and the digest of its content. Its old absolute path is only a hint, which is used if the content there is the
same.
"""

import os
from pathlib import Path
from typing import Any

from pft_core.errors import UserError
from pft_core.files import digest
from pft_core.policies.gguf import conversion_of, converted_folder, gguf_file, is_model_place, model_place
from pft_core.policies.identity import is_as_marked, marks_of
from pft_core.policies.shipped_base import SHIPPED_BASE, TOYWORLD

BASE_MARKS = "base_marks"


def base_fields(base: str, folder: Path) -> dict[str, Any]:
    """Return the fields of a reference in `folder` about its base: `base` and, for a folder without a name, marks."""
    place, folder = model_place(base), folder.resolve()
    if place is None:
        return {"base": base} | conversion_fields(base)
    if place == SHIPPED_BASE.resolve():
        return {"base": TOYWORLD}
    marks = {**marks_of(place), "written_in": digest(str(folder)), "place": str(place)}
    return {"base": f"./{os.path.relpath(place, folder)}", BASE_MARKS: marks} | conversion_fields(base)


def conversion_fields(base: str) -> dict[str, Any]:
    """Return the field about the conversion of a base from GGUF, whose weights were quantized; none for other bases."""
    file = gguf_file(base)
    return {"base_conversion": conversion_of(converted_folder(file))} if file else {}


def locate_base(base: str, marks: dict[str, Any], folder: Path) -> str:
    """Return the folder or name to load as the base of a reference in `folder`.

    Only a folder with the same content counts as the base, even at its original place. If there is no folder at all,
    the original path is returned, and loading it reports that it is missing. Raises UserError if only a different model
    is there.
    """
    if not (marks and base.startswith("./")):
        return TOYWORLD if _was_shipped(Path(base)) else base
    here = folder.resolve()
    relative = Path(os.path.normpath(here / base))
    folders = [place for place in (relative, Path(marks["place"]), here / relative.name) if is_model_place(place)]
    same = next((place for place in folders if is_as_marked(place, marks)), None)
    if folders and same is None:
        moved = "was moved, and " if digest(str(here)) != marks["written_in"] else ""
        raise UserError(
            f"{folder}: {moved}{folders[0]} is not the base that it was trained on (weights, config or tokenizer "
            f"differ; digest {marks['digest']}): put that base at {here / relative.name if moved else relative}"
        )
    return str(same or marks["place"])


def _was_shipped(place: Path) -> bool:
    """Return whether an older reference means the shipped base: the one here, or one at a path that is now gone."""
    if place.is_dir():
        return place.resolve() == SHIPPED_BASE.resolve()
    return place.is_absolute() and place.parts[-3:] == SHIPPED_BASE.parts[-3:]
