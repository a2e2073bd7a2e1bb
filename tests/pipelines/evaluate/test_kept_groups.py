"""An evaluation that was stopped goes on from its finished groups, and no other evaluation reads them."""

import json
from pathlib import Path
from typing import Any

import pytest

from pft_core.errors import UserError
from pft_core.files import read_json
from pipelines.evaluate import answering_actors, pool
from pipelines.evaluate import job as evaluate
from pipelines.evaluate.evaluation_request import EvaluateConfig
from pipelines.evaluate.kept_groups import KeptGroups
from pipelines.evaluate.local_answers import ask_in_groups
from tests.builders import record, write_dataset
from tests.pipelines.evaluate.test_capability import row, write

FILES = {"outcomes.jsonl", "rejects.jsonl", "report.html", "report.json"}


class Killed(BaseException):
    pass


class Actors:
    """Actors in this process that answer groups in reverse order. left: groups until a kill; asked: items so far."""

    def __init__(self) -> None:
        self.left, self.asked = 100, 0

    def __call__(self, actor: Any, groups: Any, jobs: Any, *, num_workers: int) -> Any:
        worker = actor(*jobs)
        for group in reversed(groups):
            if not self.left:
                raise Killed
            self.left -= 1
            self.asked += group.num_rows
            yield worker(group)


@pytest.fixture(autouse=True)
def actors(monkeypatch: pytest.MonkeyPatch) -> Actors:
    made = Actors()
    monkeypatch.setattr(evaluate, "ensure_ray", lambda: None)
    monkeypatch.setattr(pool, "answered", made)
    monkeypatch.setattr(answering_actors, "ITEMS_PER_GROUP", 4)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten records, which are three groups, of which one item is longer than LIMIT."""
    records = [record(i, axis=("Risk", "Pace")[i % 2], num_options=6 if i == 3 else 2) for i in range(10)]
    return write_dataset(tmp_path_factory.mktemp("data") / "d", records)


LIMIT = 170


def config(model: Path, data: Path, output: Path, **options: Any) -> EvaluateConfig:
    base = {"model": str(model), "data": str(data), "output": str(output), "policy": "p"}
    return EvaluateConfig(**base, use_gpu=False, threads_per_worker=1, **options)


def stopped(actors: Actors, asked: EvaluateConfig, *, after: int) -> None:
    actors.left = after
    with pytest.raises(Killed):
        evaluate.run(asked)
    assert {path.name for path in Path(asked.output).iterdir()} == {"finished_groups"}
    assert len(list((Path(asked.output) / "finished_groups").iterdir())) == after
    actors.left, actors.asked = 100, 0


def assert_same(one: Path, other: Path) -> None:
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()} == FILES
    for name in ("outcomes.jsonl", "rejects.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    first, second = (read_json(folder / "report.json", what="a report") for folder in (one, other))
    assert all(first[key] == second[key] for key in ("rows", "items", "digests"))
    assert first["items"]["in"] == first["items"]["out"] + first["items"]["rejected"]


def test_records_that_were_answered_before_a_kill_are_not_asked_again(
    actors: Actors, tiny_qwen2: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    evaluate.run(config(tiny_qwen2, data, tmp_path / "whole", max_length=LIMIT))
    assert actors.asked == 10
    cut = config(tiny_qwen2, data, tmp_path / "cut", max_length=LIMIT)
    stopped(actors, cut, after=2)
    capfd.readouterr()
    evaluate.run(cut)
    assert actors.asked == 4
    assert "evaluating 4 items with 1 workers; 6 more were answered before" in capfd.readouterr().err
    assert_same(tmp_path / "whole", tmp_path / "cut")
    assert len((tmp_path / "cut" / "rejects.jsonl").read_text().splitlines()) == 1


def test_several_policies_go_on_each_from_its_own_groups(
    actors: Actors, tiny_qwen2: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    requests = [config(model, data, tmp_path / model.name) for model in (tiny_qwen2, tiny_llama)]
    actors.left = 4  # all groups of the second policy, and one of the first
    with pytest.raises(Killed):
        evaluate.run_all(requests)
    actors.left, actors.asked = 100, 0
    evaluate.run_all(requests)
    assert actors.asked == 8
    for request in requests:
        whole = request.model_copy(update={"output": f"{request.output}-whole"})
        evaluate.run(whole)
        assert_same(Path(whole.output), Path(request.output))


@pytest.mark.parametrize("changes", [{"scoring": "option"}, {"max_length": 1000}, {"policy": "q"}])
def test_another_request_in_the_same_folder_asks_everything(
    actors: Actors, tiny_qwen2: Path, data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    asked = config(tiny_qwen2, data, tmp_path)
    stopped(actors, asked, after=2)
    evaluate.run(asked.model_copy(update=changes))
    assert actors.asked == 10
    assert {path.name for path in tmp_path.iterdir()} == FILES


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: text.replace("o", "a", 1), lambda text: ""])
def test_a_damaged_group_is_asked_again(actors: Actors, tiny_qwen2: Path, data: Path, tmp_path: Path, damage) -> None:
    asked = config(tiny_qwen2, data, tmp_path)
    stopped(actors, asked, after=2)
    for file in (tmp_path / "finished_groups").iterdir():
        file.write_text(damage(file.read_text()))
    evaluate.run(asked)
    assert actors.asked == 10


def test_groups_are_kept_until_a_report_is_written(
    actors: Actors, tiny_qwen2: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any, **kwargs: Any) -> None:
        raise UserError("a metric of the user's")

    asked = config(tiny_qwen2, data, tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(evaluate, "report_rows", failing)
        with pytest.raises(UserError, match="a metric of the user's"):
            evaluate.run(asked)
    actors.asked = 0
    evaluate.run(asked)
    assert actors.asked == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_a_task_goes_on_from_its_finished_groups(actors: Actors, tiny_qwen2: Path, tmp_path: Path) -> None:
    rows = [row(n) for n in range(9)]
    rows[2]["prompt"] += " plan" * 400
    questions = write(tmp_path / "q.json", rows)
    evaluate.run(config(tiny_qwen2, questions, tmp_path / "whole", task="capability", max_length=200))
    asked = config(tiny_qwen2, questions, tmp_path / "cut", task="capability", max_length=200)
    stopped(actors, asked, after=1)
    evaluate.run(asked)
    assert actors.asked == 8
    assert_same(tmp_path / "whole", tmp_path / "cut")
    assert len((tmp_path / "cut" / "rejects.jsonl").read_text().splitlines()) == 1


def test_a_served_policy_goes_on_from_its_finished_groups(tmp_path: Path) -> None:
    items = [(record(i), "one") for i in range(10)]
    kept, asked = KeptGroups(tmp_path / "groups", "request"), []

    def answer(questions: Any) -> list[Any]:
        asked.append(len(questions))
        if len(asked) == 3:
            raise Killed
        return [frozenset({question.side or 0}) for question in questions]

    with pytest.raises(Killed):
        ask_in_groups(items, answer, None, one_pole_axes=(), kept=kept)
    table = ask_in_groups(items, answer, None, one_pole_axes=(), kept=kept)
    assert asked == [3 * 4, 3 * 4, 3 * 2, 3 * 2]
    assert table["place"].to_pylist() == list(range(10))
    assert [json.loads(line)["item_id"] for line in table["outcome"].to_pylist()] == [r.id for r, _ in items]
