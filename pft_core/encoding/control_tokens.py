"""Control tokens that a user's text spells: `<|im_end|>` in a scenario would end the turn that it stands in."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pft_core.data import PairedExample, Reject
from pft_core.prompts import marks_of_turns

REASON = "control_token"


def reject_control_tokens(
    example_id: str, record: PairedExample, tokenizer: Any, *, beside: Sequence[str] = ()
) -> Reject | None:
    """Return why a record cannot be encoded: its prompts hold what the tokenizer reads as a token of control.

    beside: what its prompts say besides the record's own texts: lines that state preferences, a history.
    """
    options = [option.text for option in record.options]
    for key, texts in (("scenario", [record.scenario]), ("options", options), ("preference", beside)):
        token = control_token_in(texts, tokenizer)
        if token is not None:
            return Reject(example_id, key, REASON, f"{token!r} is no text to this tokenizer: write it otherwise")
    return None


def control_token_in(texts: Sequence[str], tokenizer: Any) -> str | None:
    """Return a token of control that one of the texts spells; None where all are plain text.

    These are the tokenizer's special tokens, and others that it adds and its chat template marks turns with.
    """
    spelled = _spelled(tokenizer, len(tokenizer), str(tokenizer.chat_template))
    found = (spelled.search(text) for text in texts)
    return next((match[0] for match in found if match), None)


@lru_cache(maxsize=1)
def _spelled(tokenizer: Any, vocab_size: int, template: str) -> re.Pattern[str]:
    """vocab_size, template: the tokenizer's, so that one that has changed is not read from the cache."""
    marks = marks_of_turns(tokenizer)
    added = tokenizer.added_tokens_decoder.values()
    control = {token.content for token in added if token.special or _marks_turns(token.content, marks)}
    # The longest first, as the tokenizer takes it; a pattern that matches nothing where there are none.
    return re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or r"(?!)")


def _marks_turns(token: str, marks: str) -> bool:
    """Tell whether a token is of a template's marks, and no word or white space that is there as well."""
    return token in marks and re.fullmatch(r"[^\w\s].*[^\w\s]", token) is not None
