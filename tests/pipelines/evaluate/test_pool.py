"""The answers of a pool of actors do not depend on which group comes back first, or twice."""

from pathlib import Path

import pytest
import torch

from pft_core.data import Reject
from pft_core.evaluation import TaskItem
from pipelines.evaluate import policy
from pipelines.evaluate.answering_actors import (
    PolicyActor,
    TaskActor,
    answers_table,
    items_table,
    reply_row,
    task_table,
)
from pipelines.evaluate.evaluation_request import EvaluateConfig, make_job, resolve_policy
from pipelines.evaluate.pool import in_groups, in_order, read_replies
from tests.builders import record

ITEMS = [TaskItem(f"item-{number}", f"question {number}", ("boat", "river")) for number in range(150)]
REPLIES = [Reject(str(n), "prompt", "too_long", "") if n % 7 == 0 else (float(n), 0.0) for n in range(len(ITEMS))]


GROUPS = [task_table(chunk, first) for first, chunk in in_groups(ITEMS)]


def answered_backwards() -> list[dict]:
    assert len(GROUPS) == 3
    firsts = [group["place"][0].as_py() for group in reversed(GROUPS)]
    sizes = [group.num_rows for group in reversed(GROUPS)]
    tables = [
        answers_table([reply_row(reply) for reply in REPLIES[first : first + size]], first)
        for first, size in zip(firsts, sizes, strict=True)
    ]
    return [row for table in tables for row in table.to_pylist()]


def test_replies_and_rejects_keep_the_order_of_the_items() -> None:
    replies, rejects = read_replies(ITEMS, in_order(answered_backwards(), GROUPS))
    assert list(replies) == [n for n in range(len(ITEMS)) if n % 7]
    assert all(replies[n] == (float(n), 0.0) for n in replies)
    assert [reject.row for reject in rejects] == [f"item-{n}" for n in range(0, len(ITEMS), 7)]


@pytest.mark.parametrize("faulty", [lambda rows: rows[1:], lambda rows: [*rows, rows[0]]])
def test_a_lost_or_a_second_answer_is_never_overlooked(faulty) -> None:
    with pytest.raises(AssertionError, match="each item is answered once"):
        in_order(faulty(answered_backwards()), GROUPS)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()]
)
def test_an_actor_that_finds_no_memory_says_what_to_lower(error, tiny_qwen2: Path, tmp_path, monkeypatch) -> None:
    def full(*args: object) -> None:
        raise error

    config = EvaluateConfig(model=str(tiny_qwen2), data=str(tmp_path), output=str(tmp_path / "o"), use_gpu=False)
    job = make_job(config, resolve_policy(config, None))
    for name, actor, table in (
        ("answerers", PolicyActor(job), items_table([(record(), "one")])),
        ("load_asked", TaskActor(job), task_table(ITEMS[:1], 0)),
    ):
        monkeypatch.setattr(policy, name, full)
        (row,) = actor(table).to_pylist()
        assert row["fault"].startswith("out of memory: lower tokens_per_batch=8192, ")
