"""Tokens of choices after a prompt, which may differ from the tokens of the choices alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pft_core.encoding import common_prefix_length
from pft_core.errors import UserError

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class ChoicesInContext:
    """A prompt and the tokens of each choice after it.

    lead: the text that these tokens begin with but that is not part of the choice.
    """

    prompt_ids: TokenIds
    choices: tuple[TokenIds, ...]
    lead: str = ""


def in_context(prompt_ids: Sequence[int], rows: Sequence[Sequence[int]]) -> ChoicesInContext:
    """Split the tokens of prompt and choice at the longest prefix that all of them share.

    prompt_ids: of the prompt alone; rows: of the prompt with each choice. A choice may change the prompt's last tokens
    ("Answ" + "er" becomes "Answer"), which then belong to the choices. Raises UserError if no token is left before
    them.
    """
    shared = common_prefix_length([np.asarray(ids) for ids in (prompt_ids, *rows)])
    if shared == 0:
        raise UserError("structured_outputs: a choice and the whole prompt become one token: use a longer prompt")
    return ChoicesInContext(tuple(prompt_ids[:shared]), tuple(tuple(row[shared:]) for row in rows))
