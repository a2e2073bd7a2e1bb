"""Tasks of a plugin: items, replies, scores and report rows."""

import json

import numpy as np
import pytest

from pft_core.errors import UserError
from pft_core.evaluation.tasks.registry import TASKS
from pft_core.evaluation.tasks.task import Task, TaskItem
from pft_core.evaluation.tasks.task_answers import likeliest
from pft_core.evaluation.tasks.task_scores import scored, task_rows
from tests.builders import SPACE, tree


def is_gold(item: TaskItem, answer) -> float | None:
    return None if answer == "?" else float(answer == item.gold)


TASK = Task("Own", "share right", lambda data, settings: [], is_gold)
TWO = ("yes", "no")


def rows_of(replies, **changes) -> list[dict]:
    items = [TaskItem(f"i{n}", "p", answers, gold, **changes) for n, (answers, gold, _) in enumerate(replies)]
    replies_with_scores = [scored(TASK, item, reply) for item, (*_, reply) in zip(items, replies, strict=True)]
    return task_rows("own", replies_with_scores, policy="p", space=SPACE, trained_poles={"Risk": {1}})


def test_a_row_has_the_reports_keys_and_the_position_baseline() -> None:
    (row,) = rows_of([(TWO, 0, (0,)), (TWO, 1, (0,)), (TWO, 0, (0,)), (TWO, 0, (1,))])
    low, high = row.pop("low"), row.pop("high")
    assert row == {
        "policy": "p", "axis": None, "pole": None, "trained_pole": None, "metric": "own", "value": 2 / 4, "n": 4,
        "position_baseline": 3 / 4, "unparsed": 0.0,
    }  # fmt: skip
    assert 0 <= low < 0.5 < high <= 1


def test_unparsed_replies_count_as_wrong_and_are_reported() -> None:
    (row,) = rows_of([((), "a", "a"), ((), "b", "?")])
    assert (row["value"], row["unparsed"], row["position_baseline"]) == (1 / 2, 1 / 2, None)


def test_tied_answers_give_their_mean_score() -> None:
    assert rows_of([(TWO, 0, (0, 1)), (TWO, 0, (0,))])[0]["value"] == 0.75


def test_items_of_a_pole_have_a_row_for_it() -> None:
    (row,) = rows_of([(TWO, 0, (0,)), (TWO, 0, (1,))], axis="Risk", side=1)
    assert (row["axis"], row["pole"], row["trained_pole"]) == ("Risk", "Careful", True)
    with pytest.raises(UserError, match="no axis 'Rsk'"):
        rows_of([(TWO, 0, (0,))], axis="Rsk", side=1)


def test_items_of_one_scenario_are_drawn_together() -> None:
    (row,) = rows_of([(TWO, 0, (0,)), (TWO, 0, (1,))], scenario="s")
    assert (row["low"], row["value"], row["high"]) == (0.5, 0.5, 0.5)


def test_the_likeliest_answer_has_the_highest_mean_per_token() -> None:
    example = tree("x", [[1], [1], [1]], [[5, 6], [7], [8]], sides=(0, 1, 2))
    assert likeliest(example, np.array([-3, -2, -2.5], dtype=np.float32)) == (0,)  # -1.5 per token
    assert likeliest(example, np.array([-4, -2, -2.0], dtype=np.float32)) == (0, 1, 2)


def test_a_scored_reply_is_one_line_of_json() -> None:
    line = json.loads(scored(TASK, TaskItem("i", "p", TWO, 1), (1,)).to_json())
    assert line == {"item_id": "i", "scenario": "i", "axis": None, "side": None, "reply": [1], "score": 1.0}


def test_only_the_choices_task_asks_records() -> None:
    assert [name for name in TASKS if TASKS[name].asks_records] == ["choices"]
    with pytest.raises(UserError, match=r"task 'choice' does not exist\. Did you mean 'choices'"):
        TASKS["choice"]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda item, answer: 1 / answer, r"test_tasks\.py, line \d+: ZeroDivisionError"),
        (lambda item, answer: float("nan"), "the score is nan: return a finite number, or None"),
        (lambda item, answer: "good", "the score is 'good': return a finite number, or None"),
    ],
)
@pytest.mark.parametrize("reply", [(0, 1), "1"])
def test_a_score_that_fails_or_is_not_finite_is_an_error_that_names_the_item(score, message, reply) -> None:
    if isinstance(reply, str) and "Zero" in message:
        message = r"test_tasks\.py, line \d+: TypeError"
    with pytest.raises(UserError, match=rf"^task 'Own', item 'i7': .*{message}"):
        scored(Task("Own", "share right", lambda data, settings: [], score), TaskItem("i7", "p", TWO), reply)
