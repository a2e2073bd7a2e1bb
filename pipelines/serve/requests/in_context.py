"""Choices in the tokens that they have after a prompt, which may be others than they have alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pft_core.encoding import common_prefix_length
from pft_core.errors import UserError

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class ChoicesInContext:
    """What is asked of the engine: a prompt, and the tokens of each choice after it.

    lead: the text that those tokens begin with, and that is no part of the choice.
    """

    prompt_ids: TokenIds
    choices: tuple[TokenIds, ...]
    lead: str = ""


def in_context(prompt_ids: Sequence[int], rows: Sequence[Sequence[int]]) -> ChoicesInContext:
    """Split what prompt and choice are together where all of them still agree.

    prompt_ids: of the prompt alone; rows: of the prompt with each choice. A choice may change the prompt's last tokens
    ("Answ" and "er" are "Answer"): then these belong to the choices. Raises UserError where no token is left before
    them.
    """
    shared = common_prefix_length([np.asarray(ids) for ids in (prompt_ids, *rows)])
    if shared == 0:
        raise UserError("structured_outputs: a choice makes one token with the whole prompt: give a longer prompt")
    return ChoicesInContext(tuple(prompt_ids[:shared]), tuple(tuple(row[shared:]) for row in rows))
