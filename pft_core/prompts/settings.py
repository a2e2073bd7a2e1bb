"""The prompt section of a recipe."""

from typing import Literal

from pft_core.prompts.rendering import Frame, PromptStyle
from pft_core.settings import Settings


class PromptSettings(Settings):
    """Settings of how a record becomes text."""

    condition_position: Literal["before", "after"] = "before"  # the paper's prompt
    # What the policy answers and is scored on: the option's letter as JSON, or its whole text.
    answer: Literal["letter", "option"] = "letter"
    template: Literal["plain", "chat"] = "plain"  # chat: the tokenizer's own chat template
    condition: Literal["description", "control_token"] = "description"  # control_token: as in CPO (Guo et al. 2024)

    def style(self, frame: Frame) -> PromptStyle:
        """Return the prompt style in this frame, the text around a user's message."""
        return PromptStyle(self.condition_position, self.answer, frame, self.condition)
