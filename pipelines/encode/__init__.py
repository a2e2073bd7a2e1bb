"""The encoded layers of a prepared data set, encoded in bulk."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.encode.model_tokenizer import ModelTokenizer
    from pipelines.encode.shown_prompt import show_prompt
else:
    __getattr__ = lazy_exports(__name__)
