"""Prompts: the one renderer that training, evaluation and serving share, and preferences as clients state them."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pft_core.prompts.chat_template import (
        cut_at_message,
        marks_of_turns,
        render_chat,
        render_source,
        template_arguments,
    )
    from pft_core.prompts.conditions import Condition, named_axis, read_condition
    from pft_core.prompts.rendering import (
        Frame,
        Prompt,
        PromptStyle,
        chat_frame,
        condition_text,
        is_frame_of,
        render_answer,
        render_prompt,
        state_in_message,
        target_options,
        template_digest,
    )
    from pft_core.prompts.settings import PromptSettings
    from pft_core.prompts.turns import REFUSED, in_turns
else:
    __getattr__ = lazy_exports(__name__)
