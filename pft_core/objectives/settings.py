"""A recipe's settings for the loss."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from pft_core.objectives.registry import KNOBS, OBJECTIVES, ObjectiveEntry
from pft_core.settings import Settings


class ObjectiveSettings(Settings):
    """An objective's name and its knobs; setting a knob that the objective does not use is an error."""

    objective: str = "pft"  # a registered objective, such as pft, one_sided:first or dpo; see Methods
    alpha: float = Field(default=1.0, ge=0)  # weight of the first side
    beta: float = Field(default=1.0, ge=0)  # weight of the second side
    # One update for both sides (synchronous), or the paper's scheme, one for each side in turn (asynchronous).
    update: Literal["synchronous", "asynchronous"] = "synchronous"
    # Beta of the preference objectives; 0.1 is the DPO paper's value, and SimPO's authors use 2.0 to 2.5.
    preference_beta: PositiveFloat = 0.1
    simpo_gamma: float = Field(default=1.0, ge=0)  # target margin of simpo; its authors use half of beta
    nll_weight: float = Field(default=1.0, ge=0)  # weight of the likelihood term of dpo_nll

    @property
    def entry(self) -> ObjectiveEntry:
        """The registry entry of the objective."""
        return OBJECTIVES[self.objective]

    @field_validator("objective")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        OBJECTIVES[name]
        return name

    @model_validator(mode="after")
    def _knobs_are_taken(self) -> Self:
        # Defaults are always accepted, because a stored config lists every key.
        changed = [k for k in KNOBS if getattr(self, k) != type(self).model_fields[k].default]
        for knob in changed:
            if knob not in self.entry.knobs:
                used = ", ".join(self.entry.knobs) or "none of these keys"
                raise ValueError(
                    f"{knob}={getattr(self, knob)} has no effect on objective={self.objective}, which uses {used}: "
                    f"remove {knob}"
                )
        return self

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        weights = self.entry.weights
        if weights and not any(getattr(self, weight) for weight in weights):
            both_zero = "alpha and beta are both 0: set at least one of them above 0"
            raise ValueError(both_zero if len(weights) > 1 else f"{weights[0]} is 0: set it above 0")
        return self

    def with_objective(self, name: str) -> Self:
        """Return the settings for another objective, with the knobs that it does not use at their defaults."""
        others = [knob for knob in KNOBS if knob not in OBJECTIVES[name].knobs]
        defaults = {knob: type(self).model_fields[knob].default for knob in others}
        return self.model_copy(update={"objective": name, **defaults})
