"""The size of the largest bin, known before training."""

import pytest

from pft_core.objectives.nll import one_sided_nll, paired_nll
from pft_core.training.order import DataOrder
from pft_core.training.planning import largest_bin
from tests.builders import MemoryStore, loop_settings, tree, varied

# Prefix 2, branches 1 + 4 and 1 + 2: ten tokens with a shared prefix. The other pair has four.
STORE = MemoryStore([tree("long", [[5, 6, 7], [5, 6, 8]], [[9] * 4, [9] * 2]), tree("short", [[5, 6]] * 2, [[7], [8]])])
SETTINGS = loop_settings(
    paired_nll(alpha=1.0, beta=1.0),
    DataOrder(2, seed=0),
    total_pairs=16,
    schedule_steps=2,
    pairs_per_step=8,
    tokens_per_microbatch=1000,
)


@pytest.mark.parametrize(
    ("changes", "num_ranks", "tokens"),
    [
        ({}, 1, 8 * 10),  # a whole step
        ({}, 3, 3 * 10),  # ceil(8 / 3) pairs per rank
        ({"tokens_per_microbatch": 25}, 1, 25),  # the budget is smaller
        ({"pairs_per_microbatch": 4}, 1, 4 * 10),  # micro-batches by count have no token budget
        ({"shares_prefix": False}, 1, 8 * 12),
        ({"objective": one_sided_nll(side=1)}, 1, 8 * 5),  # prefix 2 and the second branch of 3
    ],
)
def test_the_largest_bin_is_bounded_before_the_run(changes, num_ranks, tokens) -> None:
    assert largest_bin(varied(SETTINGS, **changes), STORE, num_ranks=num_ranks) == tokens
