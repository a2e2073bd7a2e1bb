"""Pairs that exceed the maximum length: they are rejected, or lose the start of the scenario, never of the answer."""

from collections.abc import Sequence

import numpy as np

from pft_core.data import Reject
from pft_core.encoding.settings import EncodingSettings
from pft_core.encoding.tokens import TokenizedAnswer


def fit_length(
    example_id: str, rows: Sequence[TokenizedAnswer], encoding: EncodingSettings
) -> Sequence[TokenizedAnswer] | Reject:
    """Return a pair's branches within `encoding.max_length` tokens, or a reject.

    A cut removes the same tokens from every branch.
    """
    longest = max(len(row.ids) for row in rows)
    excess = longest - encoding.max_length
    if excess <= 0:
        return rows
    cuttable = min(end - start for start, end in (row.scenario_tokens for row in rows))
    if encoding.overlong == "reject" or excess > cuttable:
        return Reject(example_id, "scenario", "overlong", f"{longest} tokens, but max_length is {encoding.max_length}")
    return [_without_scenario_head(row, excess) for row in rows]


def _without_scenario_head(row: TokenizedAnswer, count: int) -> TokenizedAnswer:
    start, end = row.scenario_tokens
    ids = np.concatenate([row.ids[:start], row.ids[start + count :]])
    return TokenizedAnswer(ids, row.answer_start - count, (start, end - count))
