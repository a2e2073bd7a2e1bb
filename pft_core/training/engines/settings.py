"""A recipe's settings for the engine."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from pft_core.policies import Precision
from pft_core.settings import Settings
from pft_core.training.engines.registry import ENGINES, EngineEntry


class OptimizerSettings(Settings):
    """Optimizer settings of an engine, without the learning rate, which the loop sets at every step."""

    weight_decay: float = Field(default=0.01, ge=0)  # weight decay of AdamW
    max_grad_norm: PositiveFloat = 1.0  # gradients are scaled down to this norm
    precision: Precision = "bf16"  # number format of frozen weights and activations; trained weights are fp32


class EngineSettings(Settings):
    """The engine: plain torch, or DeepSpeed at a ZeRO stage. DeepSpeed's JSON config is derived from these settings."""

    name: str = "torch"  # a registered engine, such as torch or deepspeed
    zero_stage: Literal[0, 1, 2, 3] = 2  # ZeRO stage of deepspeed

    @model_validator(mode="after")
    def _zero_is_deepspeeds(self) -> Self:
        # The default is always accepted, because a stored config lists every key; 0 means no ZeRO.
        accepted = (0, type(self).model_fields["zero_stage"].default)
        if self.zero_stage not in accepted and self.name == "torch":
            raise ValueError(
                f"engine.zero_stage={self.zero_stage} has no effect on engine.name=torch: set engine.name=deepspeed, "
                "or remove engine.zero_stage"
            )
        return self

    @property
    def entry(self) -> EngineEntry:
        """The registry entry of the engine."""
        return ENGINES[self.name]

    @field_validator("name")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        ENGINES[name]
        return name
