"""What `pft tune` tries: the part of a recipe that only a search reads."""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from pft_core.errors import UserError
from pft_core.objectives import OBJECTIVES
from pft_core.settings import Settings

MOST_WEIGHT, MOST_T = 1e6, 20.0  # beyond, a side has no weight that a float32 could feel


class Range(Settings):
    """Numbers from low to high; log: as many to be tried between 1 and 2 as between 2 and 4."""

    low: int | float  # two whole numbers: whole numbers are tried
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low={self.low:g} is not below high={self.high:g}: there is nothing between them")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low:g}: a logarithmic range starts above 0")
        return self


Weight = Annotated[float, Field(ge=0, le=MOST_WEIGHT)]
SEARCHED_KEYS = re.compile(r"(train|lora)\.[a-z_]+|seed")


class SearchSettings(Settings):
    """What `pft tune` tries; nothing else reads it. The defaults of alphas and betas span the paper's Figure 5."""

    alphas: list[Weight] = Field(default=[0, 0.25, 0.5, 1, 2], min_length=1)  # of grid, soup and asha
    betas: list[Weight] = Field(default=[0, 0.25, 0.5, 1, 2], min_length=1)
    t: Range = Range(low=-math.log(8), high=math.log(8))  # of optuna: log(alpha / beta)
    space: dict[str, Annotated[list[Any], Field(min_length=1)] | Range] = Field(default_factory=dict)  # train.lr: [..]
    num_trials: PositiveInt = 16  # of optuna
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"  # of optuna; all three know two goals
    form: Literal["one", "all"] = "one"  # whose accuracy the poles' is
    metric: Literal["worse_pole", "both_right", "pole_first", "pole_second"] = "worse_pole"  # what the pick maximises
    verify: int = Field(default=2, ge=0)  # of soup: how many soups are held against a real training
    trials: Literal["ray_train", "warm"] = "ray_train"  # warm: one process a trial, kept for the next; torch engine
    limit_per_axis: PositiveInt | None = None  # validation items that a trial is asked; None: all

    @model_validator(mode="after")
    def _something_is_searched(self) -> Self:
        if not any(self.alphas) and not any(self.betas):
            raise ValueError("alphas and betas hold only 0, which trains nothing: give at least one weight above 0")
        if tiny := [weight for weight in [*self.alphas, *self.betas] if 0 < weight < 1 / MOST_WEIGHT]:
            raise ValueError(f"the weight {tiny[0]:g} is next to nothing: give 0, or at least {1 / MOST_WEIGHT:g}")
        if max(abs(self.t.low), abs(self.t.high)) > MOST_T:
            raise ValueError(f"t reaches beyond {MOST_T:g}, where one side has no weight left: lower it")
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
    """Raise UserError for what is asked of a search that this mode does not read. A recipe may serve several modes."""
    for override in overrides:
        section, _, field = override.partition("=")[0].partition(".")
        modes = OF_MODES.get(field.partition(".")[0], (mode,)) if section == "search" else (mode,)
        if mode not in modes:
            raise UserError(f"{override} has no effect: it is of --mode {', '.join(modes)}: leave it out")


def _refuse_unsearched(key: str, values: list[Any] | Range) -> None:
    """Raises ValueError for a key that a search does not vary, and for values that stand twice or do not belong."""
    if key in ("train.alpha", "train.beta"):
        raise ValueError(f"space: {key}: alphas and betas are searched already, as search.alphas and betas")
    if not SEARCHED_KEYS.fullmatch(key):
        raise ValueError(f"space: {key} cannot be searched: give keys of train or lora, such as train.lr, or seed")
    for i, value in enumerate([] if isinstance(values, Range) else values):
        if value in values[:i]:  # type: ignore[index]
            raise ValueError(f"space: {key}: {value!r} stands twice")
        if key == "train.objective" and value not in searchable():
            raise ValueError(f"space: {key}: {value!r} is not decided by a ratio: give {', '.join(searchable())}")


def searchable() -> list[str]:
    """The objectives that the ratio of alpha and beta decides, whole."""
    return [name for name in OBJECTIVES if OBJECTIVES[name].is_searchable]
