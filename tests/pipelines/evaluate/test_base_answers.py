"""The base model is asked the same questions of a data set once, and kept answers are those of asking again."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pft_core.data import Reject
from pft_core.evaluation import KeptAnswers, Question, WeightedChoice
from pft_core.evaluation.answers import Answer
from pft_core.files import read_checked_lines, read_json
from pipelines.evaluate import job as evaluate
from pipelines.evaluate import policy, pool
from pipelines.evaluate.evaluation_request import EvaluateConfig
from tests.builders import record, write_dataset
from tests.serving import write_policy

QUESTIONS = [Question(record(i), "one", None) for i in range(4)]
ANSWERS = [WeightedChoice({1}, [0.25, 0.7501]), frozenset({0, 2}), None, Reject("r:one", "scenario", "overlong", "why")]


class Model:
    """An answerer that counts its calls and how often it is loaded."""

    def __init__(self) -> None:
        self.loads, self.calls = 0, 0

    def load(self) -> Any:
        self.loads += 1
        return self

    def __call__(self, questions: Any) -> list[Answer]:
        self.calls += 1
        return ANSWERS[: len(questions)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "base_answers" / "key"


def same(ours: list[Answer], theirs: list[Answer]) -> bool:
    shares = [[getattr(each, "probabilities", None) for each in answers] for answers in (ours, theirs)]
    return ours == theirs and shares[0] == shares[1] and list(map(type, ours)) == list(map(type, theirs))


def test_kept_answers_of_every_kind_are_read_without_loading_a_model(folder: Path) -> None:
    model = Model()
    assert same(KeptAnswers(model.load, folder)(QUESTIONS), ANSWERS)
    again = KeptAnswers(model.load, folder)
    assert same(again(QUESTIONS), ANSWERS)
    assert (model.loads, model.calls, again.calls_reused) == (1, 1, 1)


def test_other_questions_are_asked(folder: Path) -> None:
    model = Model()
    for questions in (QUESTIONS, QUESTIONS[:2], [replace(QUESTIONS[0], side=0), *QUESTIONS[1:]]):
        assert same(KeptAnswers(model.load, folder)(questions), ANSWERS[: len(questions)])
    assert model.calls == 3


def test_many_evaluations_at_once_end_with_one_whole_file(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: KeptAnswers(Model().load, folder)(QUESTIONS), range(40)))
    assert all(same(each, ANSWERS) for each in answers)
    (file,) = folder.iterdir()
    assert len(read_checked_lines(file) or []) == len(ANSWERS)


@pytest.mark.parametrize("damage", [lambda text: text[:-5], lambda text: text.replace("0.25", "0.75"), lambda text: ""])
def test_a_damaged_file_is_asked_again_and_repaired(folder: Path, damage: Any) -> None:
    model = Model()
    KeptAnswers(model.load, folder)(QUESTIONS)
    (file,) = folder.iterdir()
    whole = file.read_text()
    file.write_text(damage(whole))
    assert same(KeptAnswers(model.load, folder)(QUESTIONS), ANSWERS)
    assert (model.calls, file.read_text()) == (2, whole)


def test_a_data_set_that_cannot_be_written_or_is_elsewhere_is_asked_as_ever(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "nowhere" / "base_answers" / "key", tmp_path / "file" / "base_answers" / "key"):
        assert same(KeptAnswers(Model().load, folder)(QUESTIONS), ANSWERS)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int | None, ...]]:
    """Ask in this process; collect the sides of the questions that a model answers."""
    asked: list[tuple[int | None, ...]] = []

    def here(actor: Any, groups: Any, jobs: Any, *, num_workers: int) -> Any:
        worker = actor(*jobs)
        yield from map(worker, groups)

    def counted(questions: Any, **how: Any) -> list[Answer]:
        asked.append(tuple(question.side for question in questions))
        return by_likelihood(questions, **how)

    by_likelihood = policy.by_likelihood
    monkeypatch.setattr(evaluate, "ensure_ray", lambda: None)
    monkeypatch.setattr(pool, "answered", here)
    monkeypatch.setattr(policy, "by_likelihood", counted)
    return asked


def evaluated(model: Path, data: Path, output: Path, **options: Any) -> dict[str, Any]:
    how: dict[str, Any] = {"policy": "p", "max_length": 170, "use_gpu": False, "threads_per_worker": 1, **options}
    evaluate.run(EvaluateConfig(model=str(model), data=str(data), output=str(output), **how))
    rows = read_json(output / "report.json", what="a report")["rows"]
    return {"rows": rows, **{name: (output / name).read_bytes() for name in ("outcomes.jsonl", "rejects.jsonl")}}


def test_two_policies_ask_their_base_once_and_an_evaluation_of_the_base_is_not_repeated(
    scored: list[Any], tiny_qwen2: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    records = [record(i, axis=("Risk", "Pace")[i % 2], num_options=6 if i == 3 else 2) for i in range(6)]
    data = write_dataset(tmp_path / "data", records)
    policies = [write_policy(tmp_path / name, tiny_qwen2, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    models = [*policies, tiny_qwen2]
    free, every = (None,) * 6, (0, 1, None) * 6
    first = [evaluated(model, data, tmp_path / f"first-{n}") for n, model in enumerate(models)]
    assert scored == [every, free, every, every]
    said = "6 items: the base model's answers were reused from an earlier evaluation of this data"
    assert capfd.readouterr().err.count(said) == 1
    scored.clear()
    kept = [evaluated(model, data, tmp_path / f"kept-{n}") for n, model in enumerate(models)]
    assert scored == [every, every]  # of the two policies with their adapters
    assert capfd.readouterr().err.count(said) == 3
    copy = write_dataset(tmp_path / "copy", records)  # has no kept answers
    asked = [evaluated(model, copy, tmp_path / f"asked-{n}") for n, model in enumerate(models)]
    assert first == kept == asked


@pytest.mark.parametrize("changes", [{"scoring": "option"}, {"tokens_per_batch": 512}, {"threads_per_worker": 2}])
def test_answers_of_other_settings_are_not_reused(
    scored: list[Any], tiny_qwen2: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    data = write_dataset(tmp_path / "data", [record(i, num_options=2) for i in range(2)])
    evaluated(tiny_qwen2, data, tmp_path / "one")
    scored.clear()
    evaluated(tiny_qwen2, data, tmp_path / "two", **changes)
    assert bool(scored) == ("threads_per_worker" not in changes)
