"""Control tokens that a user's text spells: `<|im_end|>` in a scenario would end the turn that it stands in."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pft_core.data import PairedExample, Reject

REASON = "control_token"


def reject_control_tokens(example_id: str, record: PairedExample, tokenizer: Any) -> Reject | None:
    """Return why a record cannot be encoded: its own texts hold what the tokenizer reads as a token of control."""
    for key, texts in (("scenario", [record.scenario]), ("options", [option.text for option in record.options])):
        token = control_token_in(texts, tokenizer)
        if token is not None:
            return Reject(example_id, key, REASON, f"{token!r} is no text to this tokenizer: write it otherwise")
    return None


def control_token_in(texts: Sequence[str], tokenizer: Any) -> str | None:
    """Return a special token that one of the texts spells; None where all are plain text."""
    spelled = _spelled(tokenizer, len(tokenizer))
    found = (spelled.search(text) for text in texts)
    return next((match[0] for match in found if match), None)


@lru_cache(maxsize=1)
def _spelled(tokenizer: Any, vocab_size: int) -> re.Pattern[str]:
    """vocab_size: `len(tokenizer)`, so that a grown vocabulary is not read from the cache."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    # The longest first, as the tokenizer takes it; a pattern that matches nothing where there are none.
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
