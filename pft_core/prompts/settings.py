"""The prompt section of a recipe."""

from typing import Literal

from pft_core.prompts.rendering import Frame, PromptStyle
from pft_core.settings import Settings


class PromptSettings(Settings):
    """Settings of how a record becomes text."""

    # Where the condition stands: before the scenario (as in the paper), or after it.
    condition_position: Literal["before", "after"] = "before"
    # What the policy answers and is scored on: the option's letter as JSON, or its whole text.
    answer: Literal["letter", "option"] = "letter"
    template: Literal["plain", "chat"] = "plain"  # text around a prompt: none, or the tokenizer's chat template
    # How a prompt states the condition: by a description, or by a token as in Controllable PO (Guo et al. 2024).
    condition: Literal["description", "control_token"] = "description"

    def style(self, frame: Frame) -> PromptStyle:
        """Return the prompt style in this frame, the text around a user's message."""
        return PromptStyle(self.condition_position, self.answer, frame, self.condition)
