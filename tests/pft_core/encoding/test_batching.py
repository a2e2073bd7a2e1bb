"""Bins of a step, their distribution over ranks, and collated batches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pft_core.encoding.batching import collate, deal, empty_example, plan_bins, plan_fixed
from pft_core.errors import UserError
from tests.builders import tree


@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(50, 200))
def test_every_item_is_in_exactly_one_bin_and_bins_keep_the_budget(lengths: list[int], budget: int) -> None:
    bins = plan_bins(lengths, tokens_per_microbatch=budget)
    assert sorted(i for items in bins for i in items) == list(range(len(lengths)))
    assert all(max(lengths[i] for i in items) * len(items) <= budget for items in bins)


def test_a_pair_longer_than_the_budget_says_what_to_raise() -> None:
    with pytest.raises(UserError, match=r"tokens_per_microbatch=10 .* 11 tokens: raise it to 11"):
        plan_bins([3, 11], tokens_per_microbatch=10)


def test_fixed_bins_keep_file_order_and_the_last_may_be_short() -> None:
    assert plan_fixed(5, items_per_bin=2) == [[0, 1], [2, 3], [4]]


def test_the_positions_of_a_step_go_to_ranks_in_turn() -> None:
    assert deal(5, num_ranks=2) == [[0, 2, 4], [1, 3]]


def test_collate_counts_labels_per_branch() -> None:
    batch = collate([tree("a", [[1, 2], [1, 3]], [[7, 8], [9]]), empty_example()])
    assert batch.num_labels_R.tolist() == [2, 1, 0, 0]
    assert batch.branch_example.tolist() == [0, 0, 1, 1]
    assert batch.branch_side.tolist() == [0, 1, 0, 0]
