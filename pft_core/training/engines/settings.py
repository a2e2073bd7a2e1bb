"""What a recipe says of the engine."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from pft_core.policies import Precision
from pft_core.settings import Settings
from pft_core.training.engines.registry import ENGINES, EngineEntry


class OptimizerSettings(Settings):
    """What an engine does with gradients, apart from the learning rate, which comes with every step."""

    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    precision: Precision = "bf16"


class EngineSettings(Settings):
    """Plain torch, or DeepSpeed at a ZeRO stage; DeepSpeed's JSON is derived from this."""

    name: str = "torch"
    zero_stage: Literal[0, 1, 2, 3] = 2  # of deepspeed

    @model_validator(mode="after")
    def _zero_is_deepspeeds(self) -> Self:
        # The default may stand anywhere, since a stored config lists every key; 0 asks for nothing.
        unasked = (0, type(self).model_fields["zero_stage"].default)
        if self.zero_stage not in unasked and self.name == "torch":
            raise ValueError(
                f"engine.zero_stage={self.zero_stage} has no effect on engine.name=torch: set engine.name=deepspeed, "
                "or leave it out"
            )
        return self

    @property
    def entry(self) -> EngineEntry:
        """The registered engine that the settings name."""
        return ENGINES[self.name]

    @field_validator("name")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        ENGINES[name]
        return name
