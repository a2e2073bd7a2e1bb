"""What an evaluation actor is told: which policy, how to ask it, and on what it runs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pft_core.evaluation import AnswerSettings
from pft_core.policies import ModelRef

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AnsweringJob:
    """What an actor needs: which policy, how to ask it, and on what it runs."""

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
