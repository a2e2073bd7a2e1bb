"""Settings of a search: the section of a recipe that only `pft tune` reads."""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from pft_core.errors import UserError
from pft_core.objectives import OBJECTIVES
from pft_core.settings import Settings

MOST_WEIGHT, MOST_T = 1e6, 20.0  # beyond these, one side's weight vanishes in float32


class Range(Settings):
    """Numbers from low to high. log: sample uniformly in the logarithm."""

    low: int | float  # if both ends are integers, only integers are tried
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low={self.low:g} is not below high={self.high:g}: give low < high")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low:g}: a logarithmic range must start above 0")
        return self


Weight = Annotated[float, Field(ge=0, le=MOST_WEIGHT)]
SEARCHED_KEYS = re.compile(r"(train|lora)\.[a-z_]+|seed")


class SearchSettings(Settings):
    """What `pft tune` tries. The defaults of alphas and betas span the paper's Figure 5."""

    alphas: list[Weight] = Field(default=[0, 0.25, 0.5, 1, 2], min_length=1)  # weights to try, by grid, soup and asha
    betas: list[Weight] = Field(default=[0, 0.25, 0.5, 1, 2], min_length=1)  # weights to try, by grid, soup and asha
    t: Range = Range(low=-math.log(8), high=math.log(8))  # range of log(alpha / beta), for optuna
    # Other keys to search, such as train.lr: [1e-4, 1e-3].
    space: dict[str, Annotated[list[Any], Field(min_length=1)] | Range] = Field(default_factory=dict)
    num_trials: PositiveInt = 16  # number of trials, for optuna
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"  # sampler of optuna; all three take two objectives
    form: Literal["one", "all"] = "one"  # question whose accuracy is measured
    metric: Literal["worse_pole", "both_right", "pole_first", "pole_second"] = "worse_pole"  # what the pick maximizes
    verify: int = Field(default=2, ge=0)  # number of soups that are compared with a real training, for soup
    # What runs a trial: Ray Train, or processes that are used again (warm), with the torch engine only.
    trials: Literal["ray_train", "warm"] = "ray_train"
    limit_per_axis: PositiveInt | None = None  # validation items per axis in each trial, drawn with seed 0; null: all

    @model_validator(mode="after")
    def _something_is_searched(self) -> Self:
        if not any(self.alphas) and not any(self.betas):
            raise ValueError("alphas and betas hold only 0, which trains nothing: give at least one weight above 0")
        if tiny := [weight for weight in [*self.alphas, *self.betas] if 0 < weight < 1 / MOST_WEIGHT]:
            raise ValueError(f"the weight {tiny[0]:g} is too small: give 0, or at least {1 / MOST_WEIGHT:g}")
        if max(abs(self.t.low), abs(self.t.high)) > MOST_T:
            raise ValueError(f"t goes beyond {MOST_T:g}, where one side has no weight left: narrow the range")
        for key, values in self.space.items():
            _refuse_unsearched(key, values)
        return self


OF_MODES = {
    "alphas": ("grid", "soup", "asha"),
    "betas": ("grid", "soup", "asha"),
    "t": ("optuna",),
    "num_trials": ("optuna",),
    "sampler": ("optuna",),
    "verify": ("soup",),
}


def refuse_idle_search(overrides: Sequence[str], mode: str) -> None:
    """Raise UserError for an override that this mode ignores; a recipe may hold settings for several modes."""
    for override in overrides:
        section, _, field = override.partition("=")[0].partition(".")
        modes = OF_MODES.get(field.partition(".")[0], (mode,)) if section == "search" else (mode,)
        if mode not in modes:
            raise UserError(f"{override} has no effect: only --mode {', '.join(modes)} reads it: leave it out")


def _refuse_unsearched(key: str, values: list[Any] | Range) -> None:
    """Raise ValueError for a key that a search cannot vary, and for repeated or unsuitable values."""
    if key in ("train.alpha", "train.beta"):
        raise ValueError(f"space: {key}: set search.alphas and search.betas instead")
    if not SEARCHED_KEYS.fullmatch(key):
        raise ValueError(f"space: {key} cannot be searched: give a key of train or lora, such as train.lr, or seed")
    listed = [] if isinstance(values, Range) else values
    for i, value in enumerate(listed):
        if value in listed[:i]:
            raise ValueError(f"space: {key}: {value!r} is repeated")
        if key == "train.objective" and value not in searchable():
            raise ValueError(
                f"space: {key}: {value!r} does not depend on the ratio alone: give {', '.join(searchable())}"
            )


def searchable() -> list[str]:
    """Return the objectives that depend only on the ratio of alpha and beta."""
    return [name for name in OBJECTIVES if OBJECTIVES[name].is_searchable]
