"""The base of all settings: strict, frozen, checked where they are read."""

import os
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MOST = 2**63 - 1  # what counters of libraries hold


class Settings(BaseModel):
    """A part of a config: unknown keys are errors, values do not change."""

    # Defaults become what the same value would be that was given: a config that is written and read again is the same.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="after")
    def _can_be_counted(self) -> Self:
        for name, value in self:
            numbers = value if isinstance(value, list) else [value]
            if any(isinstance(number, int) and abs(number) > MOST for number in numbers):
                raise ValueError(f"{name} holds a whole number beyond {MOST}, which nothing counts to: lower it")
        return self


def _path(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError(f"{text!r} names nothing: give a path or a name, or leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is not UTF-8: rename what it names") from None
    return os.path.expanduser(text)


Threads = Annotated[int, Field(ge=1, le=1024)]  # of one process
Place = Annotated[str, AfterValidator(_path)]  # a file, a folder, or a name that is none; `~/` is the user's home
