"""What a pool of actors answers does not depend on which group comes back first, or twice."""

import pytest

from pft_core.data import Reject
from pft_core.evaluation import TaskItem
from pipelines.evaluate.pool import in_groups, in_order, read_replies
from pipelines.evaluate.worker import answered_table, reply_row, task_table

ITEMS = [TaskItem(f"item-{number}", f"question {number}", ("boat", "river")) for number in range(150)]
REPLIES = [Reject(str(n), "prompt", "too_long", "") if n % 7 == 0 else (float(n), 0.0) for n in range(len(ITEMS))]


def answered_backwards() -> list[dict]:
    groups = [task_table(chunk, first) for first, chunk in in_groups(ITEMS)]
    assert len(groups) == 3
    firsts = [group["place"][0].as_py() for group in reversed(groups)]
    sizes = [group.num_rows for group in reversed(groups)]
    tables = [
        answered_table([reply_row(reply) for reply in REPLIES[first : first + size]], first)
        for first, size in zip(firsts, sizes, strict=True)
    ]
    return [row for table in tables for row in table.to_pylist()]


def test_replies_and_rejects_keep_the_order_of_the_items() -> None:
    replies, rejects = read_replies(ITEMS, in_order(answered_backwards(), len(ITEMS)))
    assert list(replies) == [n for n in range(len(ITEMS)) if n % 7]
    assert all(replies[n] == (float(n), 0.0) for n in replies)
    assert [reject.row for reject in rejects] == [f"item-{n}" for n in range(0, len(ITEMS), 7)]


@pytest.mark.parametrize("faulty", [lambda rows: rows[1:], lambda rows: [*rows, rows[0]]])
def test_a_lost_or_a_second_answer_is_never_overlooked(faulty) -> None:
    with pytest.raises(AssertionError, match="each item is answered once"):
        in_order(faulty(answered_backwards()), len(ITEMS))
