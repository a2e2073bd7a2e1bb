"""A model's tokenizer by name, loaded on first use."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pft_core.encoding import TokenizerFacts, tokenizer_facts
from pft_core.prompts import PromptSettings


@dataclass(frozen=True)
class ModelTokenizer:
    """The tokenizer of a model, a folder or Hugging Face name. Pickling it passes on the name only."""

    model: str

    @cached_property
    def loaded(self) -> Any:
        """The tokenizer, loaded once per process. Raises UserError if the folder is missing or has none."""
        from pft_core.policies import load_tokenizer

        return load_tokenizer(self.model)

    def facts(self, prompt: PromptSettings) -> TokenizerFacts:
        """Return the facts that a job needs. Raises UserError, for example if the tokenizer lacks the chat template."""
        return tokenizer_facts(self.loaded, prompt)

    def __reduce__(self) -> tuple[type["ModelTokenizer"], tuple[str]]:
        return ModelTokenizer, (self.model,)
