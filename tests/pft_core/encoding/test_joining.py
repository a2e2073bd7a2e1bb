"""Questions of one record become one tree of three levels, and only where it saves."""

import pytest

from pft_core.encoding.batching import collate
from pft_core.encoding.examples import BranchedExample
from pft_core.encoding.joining import group_questions, joined
from tests.builders import tree

SCENARIO = [5, 6, 7, 8]


def question(condition: list[int], *, record: str = "r", scenario: list[int] = SCENARIO) -> BranchedExample:
    """Return a question with the condition after its scenario, and two options."""
    return tree(record, [[*scenario, *condition]] * 2, [[20, 21], [22]])


def rows(example: BranchedExample) -> list[list[int]]:
    """Return the whole sequence of each branch."""
    stems = [*example.stems, []]
    return [[*example.prefix_ids, *stems[branch.stem], *branch.input_ids] for branch in example.branches]


def test_a_joined_tree_holds_each_sequence_and_the_scenario_once() -> None:
    questions = [question([9, 10]), question([9, 11, 12]), question([13])]
    whole = joined(questions)
    assert rows(whole) == [row for each in questions for row in rows(each)]
    assert whole.prefix_ids.tolist() == SCENARIO
    assert [stem.tolist() for stem in whole.stems] == [[9, 10], [9, 11, 12], [13]]
    assert whole.num_tokens == 4 + 6 + 3 * 3
    assert whole.num_tokens_separate == sum(len(row) for row in rows(whole))


def test_a_prompt_that_begins_another_one_keeps_a_last_token_as_its_stem() -> None:
    whole = joined([question([]), question([9])])
    assert [stem.tolist() for stem in whole.stems] == [[8], [8, 9]]


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (question([9, 11], record="other"), "another record"),
        (question([9, 11], scenario=[1, *SCENARIO]), "the condition comes first"),
        (question([9, 11, 12, 13, 14, 15]), "less than half of the longer prompt is shared"),
    ],
)
def test_these_questions_are_not_joined(second: BranchedExample, why: str) -> None:
    first = question([10])
    assert group_questions([first, second], max_tokens=1000) == [[first], [second]], why


def test_a_group_is_as_large_as_the_budget_allows() -> None:
    questions = [question([9 + i]) for i in range(5)]
    # Two questions have 4 + 2 x (1 + 3) = 12 tokens, three have 16.
    sizes = {budget: [len(g) for g in group_questions(questions, max_tokens=budget)] for budget in (11, 12, 15, 16, 99)}
    assert sizes == {11: [1] * 5, 12: [2, 2, 1], 15: [2, 2, 1], 16: [3, 2], 99: [5]}


def test_a_batch_numbers_the_stems_of_all_its_trees() -> None:
    whole, plain = joined([question([9]), question([10, 11])]), question([12])
    batch = collate([plain, whole, whole])
    assert batch.stem_ids.tolist() == [9, 10, 11] * 2
    assert batch.stem_lengths.tolist() == [1, 2, 1, 2]
    assert batch.stem_example.tolist() == [1, 1, 2, 2]
    assert batch.branch_stem.tolist() == [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3]
    assert batch.context_lengths_R.tolist() == [5, 5, *[5, 5, 6, 6] * 2]
