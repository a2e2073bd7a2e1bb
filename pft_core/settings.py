"""The base of all settings: strict, frozen, checked where they are read."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A part of a config: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
