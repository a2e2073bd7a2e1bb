"""The job of an evaluation actor: the policy, the settings for asking it, and the hardware."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pft_core.evaluation import AnswerSettings
from pft_core.policies import ModelRef

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AnsweringJob:
    """A policy to ask, with the settings and the hardware to use.

    base_answers: the folder where the answers of the policy's base are kept; None keeps none.
    """

    ref: ModelRef
    settings: AnswerSettings
    generate: bool
    precision: Literal["bf16", "fp32"]
    use_gpu: bool
    num_threads: int
    base_answers: Path | None = None

    @property
    def device(self) -> "torch.device":
        """The device that answers."""
        import torch

        return torch.device("cuda" if self.use_gpu else "cpu")
