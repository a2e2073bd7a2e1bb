"""What a recipe says of training."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pft_core.objectives import ObjectiveSettings
from pft_core.training.engines import OptimizerSettings


class TrainSettings(ObjectiveSettings, OptimizerSettings):
    """The objective and the optimisation; lr, epochs, pairs_per_step and warm-up are the paper's."""

    diagnostics_every: int = Field(default=0, ge=0)  # steps; gradient cosines, and displacement at every step; 0: never
    normalization: Literal["step", "micro_batch"] = "step"
    pairs_per_step: int = Field(default=16, ge=1, le=1_000_000)  # a step is planned whole
    pairs_per_microbatch: PositiveInt | None = None  # only with normalization=micro_batch
    tokens_per_microbatch: PositiveInt = 8192
    epochs: PositiveFloat = 3
    max_steps: PositiveInt | None = None
    lr: PositiveFloat = 5e-5
    schedule: Literal["linear", "cosine"] = "linear"
    warmup_steps: int = Field(default=100, ge=0)
    gradient_checkpointing: bool | Literal["auto"] = "auto"  # auto: only where activations would not fit into memory
    attention_backend: Literal["auto", "separate", "split", "flex"] = "auto"  # how the sides of a pair share its prefix
    validate_every: int = Field(default=0, ge=0)  # steps; 0: never
    checkpoint_every: int = Field(default=50, ge=0)  # steps; 0: at the end only

    @model_validator(mode="after")
    def _microbatches_fit_the_normalization(self) -> Self:
        if (self.normalization == "micro_batch") != (self.pairs_per_microbatch is not None):
            raise ValueError(
                "pairs_per_microbatch and normalization=micro_batch go together: set both, or neither "
                "(normalization=step cuts a step by tokens_per_microbatch)"
            )
        if self.pairs_per_microbatch is not None and self.pairs_per_step % self.pairs_per_microbatch:
            raise ValueError(
                f"pairs_per_step={self.pairs_per_step} is not a multiple of "
                f"pairs_per_microbatch={self.pairs_per_microbatch}: change one of them"
            )
        return self

    def total_pairs(self, num_pairs: int) -> int:
        """Pairs of the whole run: `max_steps` whole steps where it is given, else `epochs` over `num_pairs`."""
        if self.max_steps is not None:
            return self.max_steps * self.pairs_per_step
        return max(1, round(self.epochs * num_pairs))
