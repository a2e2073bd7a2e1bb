"""Facts about a tokenizer, for a job that does not tokenize."""

from dataclasses import dataclass
from typing import Any

from pft_core.encoding.layer import tokenizer_digest
from pft_core.errors import UserError
from pft_core.files import digest
from pft_core.prompts import Frame, PromptSettings, PromptStyle, chat_frame


@dataclass(frozen=True)
class TokenizerFacts:
    """Facts about a tokenizer.

    digest: of its complete definition, with its chat template if the recipe uses it. style: a recipe's prompt style in
    this tokenizer's frame.
    """

    digest: str
    style: PromptStyle


def tokenizer_facts(tokenizer: Any, prompt: PromptSettings) -> TokenizerFacts:
    """Return the facts. Raises UserError if the recipe uses a chat template that is missing or unusable."""
    own, style = tokenizer_digest(tokenizer), prompt.style(frame_for(tokenizer, prompt))
    # The frame shows what a template writes around one message; the template decides what it writes around several.
    return TokenizerFacts(digest([own, tokenizer.chat_template]) if prompt.template == "chat" else own, style)


def frame_for(tokenizer: Any, prompt: PromptSettings) -> Frame:
    """Return the text around a user's message: plain, or cut from the tokenizer's chat template. Raises UserError."""
    if prompt.template == "plain":
        return Frame()
    if not tokenizer.chat_template:
        raise UserError(
            f"prompt.template=chat, but tokenizer {tokenizer.name_or_path!r} has no chat template: use plain"
        )
    return chat_frame(tokenizer)
