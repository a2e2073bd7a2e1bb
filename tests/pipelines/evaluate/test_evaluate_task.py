"""`pft evaluate --task`: a task from a user's file, and the general questions, from items to the page."""

import json
from pathlib import Path

import pytest

from pft_core.data.records import Reject
from pft_core.errors import UserError
from pft_core.evaluation.tasks.registry import TASKS
from pft_core.evaluation.tasks.task import Task, TaskItem
from pft_core.files import read_json
from pipelines.evaluate import answering_actors, pool
from pipelines.evaluate import job as evaluate
from pipelines.evaluate.answering_job import AnsweringJob
from pipelines.evaluate.capability_answers import ask_capability
from pipelines.evaluate.evaluation_request import EvaluateConfig
from pipelines.validated_yaml import build
from tests.builders import record, write_dataset
from tests.pipelines.evaluate.test_capability import job as policy_of
from tests.pipelines.evaluate.test_capability import row, write


def read_lines(data: Path, _) -> list[TaskItem | Reject]:
    return [item_of(number, line) for number, line in enumerate(data.read_text().splitlines())]


def item_of(number: int, line: str) -> TaskItem | Reject:
    prompt, *answers = line.split("|")
    return TaskItem(f"q{number}", prompt, tuple(answers), gold=0) if prompt else Reject(f"q{number}", "", "empty", "")


def is_right(item: TaskItem, answer: int | str) -> float | None:
    return None if isinstance(answer, str) else float(answer == item.gold)


@pytest.fixture
def own_task(monkeypatch) -> None:
    monkeypatch.setattr(TASKS, "_entries", {name: TASKS[name] for name in TASKS})
    TASKS.add("trivia", Task("Trivia", "share of questions that are right", read_lines, is_right))


@pytest.fixture
def in_process(monkeypatch) -> None:
    """Ask in this process, group by group and the last group first, instead of on Ray."""

    def here(actor, groups, jobs: list[AnsweringJob], *, num_workers: int, kept) -> list[dict]:
        worker = actor(*jobs)
        return [line for group in reversed(groups) for line in worker(group).to_pylist()]

    monkeypatch.setattr(evaluate, "ensure_ray", lambda: None)
    monkeypatch.setattr(pool, "on_ray", here)
    monkeypatch.setattr(answering_actors, "ITEMS_PER_GROUP", 4)


def run(model: Path, data: Path, output: Path, **options) -> dict:
    config = EvaluateConfig(model=str(model), data=str(data), output=str(output), use_gpu=False, **options)
    return read_json(Path(evaluate.run(config)["report_json"]), what="a report")


def test_a_task_from_outside_is_asked_and_lands_in_the_report(own_task, in_process, tiny_qwen2, tmp_path) -> None:
    lines = [f"The town has plan {n} . What now ?|go|stay" for n in range(9)]
    (tmp_path / "q.txt").write_text("\n".join(["", *lines, "long " * 400 + "|go|stay"]))
    report = run(tiny_qwen2, tmp_path / "q.txt", tmp_path / "out", task="trivia", policy="p", max_length=200)
    assert report["items"] == {
        "in": 11, "out": 9, "rejected": 2, "rejected_by_reason": {"empty": 1, "overlong": 1}
    }  # fmt: skip
    (report_row,) = report["rows"]
    assert (report_row["policy"], report_row["metric"], report_row["n"], report_row["position_baseline"]) == (
        "p",
        "trivia",
        9,
        1.0,
    )
    kept = [json.loads(line) for line in (tmp_path / "out" / "outcomes.jsonl").read_text().splitlines()]
    assert [line["item_id"] for line in kept] == [f"q{n}" for n in range(1, 10)]
    assert report_row["value"] == pytest.approx(sum(line["score"] for line in kept) / 9)
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [reject["row"] for reject in rejects] == ["q0", "q10"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<dt>Trivia</dt><dd>share of questions that are right</dd>" in page
    assert "on 9 items; the position baseline is 1.00." in page


def test_what_is_written_freely_is_scored_as_text(own_task, in_process, tiny_qwen2, tmp_path) -> None:
    (tmp_path / "q.txt").write_text("\n".join(["Say something .", "What now ?|go|stay"]))
    report = run(tiny_qwen2, tmp_path / "q.txt", tmp_path / "out", task="trivia", max_new_tokens=3)
    (report_row,) = report["rows"]
    assert (report_row["unparsed"], report_row["position_baseline"]) == (0.5, None)
    first, second = [json.loads(line) for line in (tmp_path / "out" / "outcomes.jsonl").read_text().splitlines()]
    assert isinstance(first["reply"], str)
    assert second["reply"] in ([0], [1])


def test_a_score_that_fails_loses_no_reply(own_task, in_process, tiny_qwen2, tmp_path) -> None:
    TASKS.add("broken", Task("Broken", "share", read_lines, lambda item, answer: 1 / 0))
    (tmp_path / "q.txt").write_text("The town has plan 1 . What now ?|go|stay\n")
    with pytest.raises(UserError, match=r"task 'Broken', item 'q0': .*ZeroDivisionError.*outcomes are kept in"):
        run(tiny_qwen2, tmp_path / "q.txt", tmp_path / "out", task="broken")
    (kept,) = map(json.loads, (tmp_path / "out" / "outcomes.jsonl").read_text().splitlines())
    assert kept["item_id"] == "q0"
    assert "score" not in kept  # null would mean an unparsed reply
    assert kept["reply"] in ([0], [1], [0, 1])


def test_general_questions_are_answered_as_in_a_comparison(in_process, tiny_qwen2, tmp_path) -> None:
    path = write(tmp_path / "items.json", [row(n) for n in range(24)])
    (report_row,) = run(tiny_qwen2, path, tmp_path / "out", task="capability")["rows"]
    answered = ask_capability(policy_of(tiny_qwen2), path)
    assert report_row["value"] == pytest.approx(sum(a.score for a in answered) / 24)
    assert 0 < report_row["value"] < 1
    assert report_row["position_baseline"] == pytest.approx(sum(a.correct_is_first for a in answered) / 24)


@pytest.mark.ray
def test_workers_answer_a_task_as_one_process_does(ray_cluster, tiny_qwen2, tmp_path, monkeypatch) -> None:
    path = write(tmp_path / "items.json", [row(n) for n in range(12)])
    monkeypatch.setattr(answering_actors, "ITEMS_PER_GROUP", 5)
    (report_row,) = run(tiny_qwen2, path, tmp_path / "out", task="capability", num_workers=2)["rows"]
    assert report_row["value"] == pytest.approx(sum(a.score for a in ask_capability(policy_of(tiny_qwen2), path)) / 12)


def test_a_reference_and_prepared_records_work_for_a_task_too(own_task, in_process, tiny_qwen2, tmp_path) -> None:
    data = write_dataset(tmp_path / "data", [record(0)])
    (data / "q.txt").write_text("What now ?|go|stay\nAnd now ?|go|stay")
    TASKS.add("inside", Task("Inside", "share", lambda folder, how: read_lines(folder / "q.txt", how), is_right))
    report = run(tiny_qwen2, data, tmp_path / "out", task="inside")
    assert report["rows"][0]["n"] == 2
    assert report["digests"]["data"] == read_json(data / "manifest.json", what="a manifest")["data_digest"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "choice"}, "task 'choice' does not exist. Did you mean 'choices'"),
        ({"task": "capability", "forms": ["one"]}, "task=capability has its own questions: leave forms out"),
        ({"task": "capability", "endpoint": "http://x", "scoring": "letter"}, "leave endpoint, scoring out"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_runs(options, message) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        build(EvaluateConfig, {"data": "d", "output": "o", "model": "m", **options})
