"""A model's tokenizer by name, loaded where it is first needed."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pft_core.encoding import TokenizerFacts, tokenizer_facts
from pft_core.prompts import PromptSettings


@dataclass(frozen=True)
class ModelTokenizer:
    """model: a folder or hub name. A driver carries it without loading anything; pickled, the name travels alone."""

    model: str

    @cached_property
    def loaded(self) -> Any:
        """The tokenizer, loaded once in a process. Raises UserError for a folder that is missing or has none."""
        from pft_core.policies import load_tokenizer

        return load_tokenizer(self.model)

    def facts(self, prompt: PromptSettings) -> TokenizerFacts:
        """What a job has to know of it. Raises UserError, also where the prompt wants a template that it lacks."""
        return tokenizer_facts(self.loaded, prompt)

    def __reduce__(self) -> tuple[type["ModelTokenizer"], tuple[str]]:
        return ModelTokenizer, (self.model,)
