"""The job of an evaluation actor: the policy, the settings for asking it, and the hardware."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pft_core.evaluation import AnswerSettings
from pft_core.policies import ModelRef

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AnsweringJob:
    """A policy to ask, with the settings and the hardware to use."""

    ref: ModelRef
    settings: AnswerSettings
    generate: bool
    precision: Literal["bf16", "fp32"]
    use_gpu: bool
    num_threads: int

    @property
    def device(self) -> "torch.device":
        """The device that answers."""
        import torch

        return torch.device("cuda" if self.use_gpu else "cpu")
