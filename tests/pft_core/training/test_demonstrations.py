"""Pairs as single demonstrations: every side of every pair once per epoch, with only its own tokens and labels."""

from collections import Counter

import pytest

from pft_core.data.preferences import SIDES
from pft_core.encoding.batching import BranchedBatch
from pft_core.objectives.build import build_objective
from pft_core.objectives.nll import paired_nll
from pft_core.objectives.settings import ObjectiveSettings
from pft_core.training.demonstrations import Demonstrations, examples_for
from pft_core.training.order import DataOrder
from pft_core.training.planning import LoopSettings, largest_bin, step_updates
from tests.builders import MemoryStore, loop_settings, random_trees, tree, varied

# Prefix 2, branches 1 + 4 and 1 + 2.
PAIRS = MemoryStore([tree("a", [[5, 6, 7], [5, 6, 8]], [[9] * 4, [9] * 2]), tree("b", [[5, 6]] * 2, [[7], [8]])])
MIXED = build_objective(ObjectiveSettings(objective="mixed"))


def settings(num_pairs: int, **changes: object) -> LoopSettings:
    base = loop_settings(
        MIXED,
        DataOrder(2 * num_pairs, seed=0),
        total_pairs=num_pairs,
        schedule_steps=2,
        pairs_per_step=4,
        tokens_per_microbatch=1000,
    )
    return varied(base, **changes)


def answers_of(batch: BranchedBatch) -> list[tuple[str, int]]:
    return list(zip(batch.example_ids, batch.branch_side.tolist(), strict=True))  # one branch per example


def test_each_side_is_an_example_with_its_own_tokens_and_labels() -> None:
    store = Demonstrations(PAIRS)
    assert len(store) == 4
    assert store.num_tokens([0, 1, 2, 3], sides=SIDES, shares_prefix=True) == [2 + 5, 2 + 3, 2 + 1, 2 + 1]
    assert store.num_tokens([1, 2], sides=(0,), shares_prefix=True) == [0, 3]
    assert store.label_counts([1, 0]).num_labels_EB.tolist() == [[0, 2], [4, 0]]
    (example,) = store.read([1])
    assert ([b.side for b in example.branches], example.branches[0].input_ids.tolist()) == ([1], [8, 9, 9])
    assert (len(store.label_counts([]).num_labels_EB), store.read([])) == (0, [])


def test_an_epoch_draws_every_side_once_and_a_step_two_answers_per_pair() -> None:
    store = Demonstrations(MemoryStore(random_trees(10)))
    drawn: Counter[tuple[str, int]] = Counter()
    for step in range(settings(10).num_steps):
        (update,) = step_updates(step, settings=settings(10), store=store, rank=0, num_ranks=1)
        answers = [answer for batch in update.batches for answer in answers_of(batch)]
        assert len(answers) == (8 if step < 2 else 4)  # 10 pairs: 4 + 4 + 2, each with two answers
        drawn.update(answers)
    assert set(drawn.values()) == {1}
    assert len(drawn) == 20


def test_the_sides_of_a_pair_meet_in_one_update_only_by_chance() -> None:
    (update,) = step_updates(
        0, settings=settings(200), store=Demonstrations(MemoryStore(random_trees(200))), rank=0, num_ranks=1
    )
    sides = Counter(e for b in update.batches for e in b.example_ids)
    assert max(sides.values()) == 1  # 8 of 400 examples: with this fixed seed no two share a pair


def test_the_mixed_objective_splits_pairs_and_pft_does_not() -> None:
    assert examples_for(paired_nll(alpha=1.0, beta=1.0), PAIRS) is PAIRS
    assert isinstance(examples_for(MIXED, PAIRS), Demonstrations)


@pytest.mark.parametrize(("changes", "tokens"), [({}, 8 * 7), ({"pairs_per_microbatch": 2}, 4 * 7)])
def test_the_largest_bin_counts_two_answers_per_pair(changes, tokens) -> None:
    assert largest_bin(settings(2, **changes), Demonstrations(PAIRS), num_ranks=1) == tokens
