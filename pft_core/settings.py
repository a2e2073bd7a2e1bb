"""The base of all settings: strict, frozen, checked where they are read."""

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Settings(BaseModel):
    """A part of a config: unknown keys are errors, values do not change."""

    # Defaults become what the same value would be that was given: a config that is written and read again is the same.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


def _path(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError(f"{text!r} names nothing: give a path or a name, or leave it out")
    return os.path.expanduser(text)


Place = Annotated[str, AfterValidator(_path)]  # a file, a folder, or a name that is none; `~/` is the user's home
