"""Control tokens inside user text: `<|im_end|>` in a scenario, for example, would end the user's turn."""

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
    """Return a reject if the texts of a record's prompts contain a control token of the tokenizer, else None.

    beside: texts of the prompts besides the record's own, such as lines that state preferences, or a history.
    """
    options = [option.text for option in record.options]
    scenario = [record.scenario, *(turn.role for turn in record.turns)]
    for key, texts in (("scenario", scenario), ("options", options), ("preference", beside)):
        token = control_token_in(texts, tokenizer)
        if token is not None:
            return Reject(example_id, key, REASON, f"the tokenizer reads {token!r} as a control token: rewrite it")
    return None


def control_token_in(texts: Sequence[str], tokenizer: Any) -> str | None:
    """Return a control token that one of the texts contains; None if all are plain text.

    Control tokens are the tokenizer's special tokens, and its other added tokens if its chat template marks turns with
    them.
    """
    pattern = _control_token_pattern(tokenizer, len(tokenizer), str(tokenizer.chat_template))
    matches = (pattern.search(text) for text in texts)
    return next((match[0] for match in matches if match), None)


@lru_cache(maxsize=1)
def _control_token_pattern(tokenizer: Any, vocab_size: int, template: str) -> re.Pattern[str]:
    """Return a pattern that matches any control token.

    vocab_size, template: those of the tokenizer, so that the cache has no outdated pattern after a change of it.
    """
    marks = marks_of_turns(tokenizer)
    added = tokenizer.added_tokens_decoder.values()
    control = {token.content for token in added if token.special or _marks_turns(token.content, marks)}
    # The longest token comes first, as the tokenizer prefers it. Without control tokens, the pattern matches nothing.
    return re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or r"(?!)")


def _marks_turns(token: str, marks: str) -> bool:
    """Return whether a token is among a template's marks, except for plain words and white space that occur there."""
    return token in marks and re.fullmatch(r"[^\w\s].*[^\w\s]", token) is not None
