"""A recipe's settings for training."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pft_core.objectives import ObjectiveSettings
from pft_core.training.engines import OptimizerSettings


class TrainSettings(ObjectiveSettings, OptimizerSettings):
    """The objective and the optimization. lr, epochs, pairs_per_step and warmup_steps default to the paper's values."""

    # Steps between gradient cosines; 0: never. Above 0, displacement is reported too.
    diagnostics_every: int = Field(default=0, ge=0)
    # Divide the loss by the label tokens of the whole step, or of each micro-batch as the paper's trainer.
    normalization: Literal["step", "micro_batch"] = "step"
    # Pairs of one update, on all workers together. A whole step is planned at once, so that their number is bounded.
    pairs_per_step: int = Field(default=16, ge=1, le=1_000_000)
    pairs_per_microbatch: PositiveInt | None = None  # pairs of a micro-batch, only with normalization=micro_batch
    tokens_per_microbatch: PositiveInt = 8192  # most tokens of one forward and backward pass, with the prompts
    epochs: PositiveFloat = 3  # passes over the training pairs, unless max_steps is set
    max_steps: PositiveInt | None = None  # number of updates; null: as epochs says
    lr: PositiveFloat = 5e-5  # learning rate after the warm-up
    schedule: Literal["linear", "cosine"] = "linear"  # how the learning rate falls to 0 after the warm-up
    warmup_steps: int = Field(default=100, ge=0)  # steps in which the learning rate rises from 0
    # Compute activations again in the backward pass to save memory; auto: only if they would not fit.
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    attention_backend: Literal["auto", "separate", "split", "flex"] = "auto"  # how the sides of a pair share its prefix
    validate_every: int = Field(default=0, ge=0)  # steps between validations; 0: only with a checkpoint
    checkpoint_every: int = Field(default=50, ge=0)  # steps between checkpoints; 0: only at the end

    @model_validator(mode="after")
    def _microbatches_fit_the_normalization(self) -> Self:
        if (self.normalization == "micro_batch") != (self.pairs_per_microbatch is not None):
            raise ValueError(
                "pairs_per_microbatch and normalization=micro_batch go together: set both or neither "
                "(normalization=step cuts a step by tokens_per_microbatch)"
            )
        if self.pairs_per_microbatch is not None and self.pairs_per_step % self.pairs_per_microbatch:
            raise ValueError(
                f"pairs_per_step={self.pairs_per_step} is not a multiple of "
                f"pairs_per_microbatch={self.pairs_per_microbatch}: change one of them"
            )
        return self

    def total_pairs(self, num_pairs: int) -> int:
        """Return the pairs of the whole run: `max_steps` full steps if that is set, else `epochs` over `num_pairs`."""
        if self.max_steps is not None:
            return self.max_steps * self.pairs_per_step
        return max(1, round(self.epochs * num_pairs))
