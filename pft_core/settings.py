"""The base class of all settings: strict, frozen, and checked when a config is read."""

import os
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MOST = 2**63 - 1  # the largest number that the counters of libraries hold


class Settings(BaseModel):
    """A section of a config: unknown keys are errors, and values cannot change."""

    # Defaults are validated like given values, so that a config that is written and read again stays the same.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="after")
    def _can_be_counted(self) -> Self:
        for name, value in self:
            numbers = value if isinstance(value, list) else [value]
            if any(isinstance(number, int) and abs(number) > MOST for number in numbers):
                raise ValueError(f"{name} holds a whole number beyond {MOST}, the largest that is supported: lower it")
        return self


def _path(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError(f"{text!r} names nothing: give a path or a name, or leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is not UTF-8: rename the file or folder") from None
    return os.path.expanduser(text)


Threads = Annotated[int, Field(ge=1, le=1024)]  # per process
ThreadsOrAuto = Threads | Literal["auto"]
Place = Annotated[str, AfterValidator(_path)]  # a file, a folder, or a plain name; `~/` is the user's home
