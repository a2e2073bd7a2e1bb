"""What a recipe says of the loss."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from pft_core.objectives.registry import KNOBS, OBJECTIVES, ObjectiveEntry
from pft_core.settings import Settings


class ObjectiveSettings(Settings):
    """An objective's name and the knobs that objectives have; a knob that this one does not take is an error."""

    objective: str = "pft"
    alpha: float = Field(default=1.0, ge=0)  # weight of the first side
    beta: float = Field(default=1.0, ge=0)  # weight of the second side
    update: Literal["synchronous", "asynchronous"] = "synchronous"
    preference_beta: PositiveFloat = 0.1  # of dpo, ipo and simpo; the paper's for DPO, SimPO's authors take 2.0 to 2.5
    simpo_gamma: float = Field(default=1.0, ge=0)  # SimPO's target margin; its authors take half of beta
    nll_weight: float = Field(default=1.0, ge=0)  # of dpo_nll

    @property
    def entry(self) -> ObjectiveEntry:
        """The registered objective that the settings name."""
        return OBJECTIVES[self.objective]

    @field_validator("objective")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        OBJECTIVES[name]
        return name

    @model_validator(mode="after")
    def _knobs_are_taken(self) -> Self:
        # Defaults may stand anywhere: a stored config lists every key.
        changed = [k for k in KNOBS if getattr(self, k) != type(self).model_fields[k].default]
        for knob in changed:
            if knob not in self.entry.knobs:
                takes = ", ".join(self.entry.knobs) or "nothing of the kind"
                raise ValueError(
                    f"{knob}={getattr(self, knob)} has no effect on objective={self.objective}, which takes {takes}: "
                    "leave it out"
                )
        return self

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        weights = self.entry.weights
        if weights and not any(getattr(self, weight) for weight in weights):
            both = "alpha and beta are both 0: give at least one side a weight"
            raise ValueError(both if len(weights) > 1 else f"{weights[0]} is 0: give it a weight")
        return self

    def with_objective(self, name: str) -> Self:
        """Return the settings for another objective, the knobs that it does not take at their defaults."""
        others = [knob for knob in KNOBS if knob not in OBJECTIVES[name].knobs]
        defaults = {knob: type(self).model_fields[knob].default for knob in others}
        return self.model_copy(update={"objective": name, **defaults})
