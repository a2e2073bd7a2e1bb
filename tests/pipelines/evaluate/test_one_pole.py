"""Data without a second pole: it is prepared and evaluated, undefined metrics are named, and training refuses it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pft_core.data.manifest import DatasetManifest
from pft_core.data.preferences import Axis, Pole, PreferenceSpace
from pft_core.data.prepared import read_records
from pft_core.data.records import Turn
from pft_core.errors import UserError
from pft_core.evaluation.answers import ask
from pft_core.evaluation.metrics.counts import outcome_counts
from pft_core.evaluation.metrics.outcome import Outcome, WeightedChoice
from pft_core.prompts.rendering import condition_text
from pipelines import data_check
from pipelines.compare.suite_data import held_out
from pipelines.config import RunConfig
from pipelines.encode import show_prompt
from pipelines.evaluate import job as evaluate
from pipelines.evaluate.answering_actors import PolicyActor, items_table
from pipelines.evaluate.evaluate_config import EvaluateConfig
from pipelines.evaluate.pool import read_answers
from pipelines.prepare.job import PrepareConfig, run
from pipelines.train import refuse_missing_inputs
from tests.builders import SPACE, record

AXIS = "Travel boats"
OTHER = "Shop boats"  # a topic with the same questions: its halves must not be joined with those of the first
ONE_POLE = PreferenceSpace("prefeval", tuple(Axis(name, Pole("fitting"), None) for name in (OTHER, AXIS)))


def halves(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    key = {"preference": f"I like boat {number} .", "question": f"Which boat is next to {number} ?"}
    turns = {"query": "Which boat ?", "assistant_options": f"{number} or a new one .", "user_selection": f"{number} ."}
    options = [f"the old {number}", f"a new {number}", f"no {number}", f"every {number}"]
    choice = key | {"conversation": turns | {"assistant_acknowledgment": "Good ."}}
    return choice, key | {"classification_task_options": options}


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("prefeval")
    rows = [halves(number) for number in range(9)]
    for kind, name in enumerate(("choice", "options")):
        (folder / name).mkdir()
        (folder / name / "travel_boats.json").write_text(json.dumps([row[kind] for row in rows]))
        (folder / name / "shop_boats.json").write_text(json.dumps([row[kind] for row in rows[:3]]))
    return [str(folder / "choice"), str(folder / "options")]


@pytest.fixture(scope="module")
def data(raw, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("prepared") / "data"
    counts = run(PrepareConfig(source="prefeval", input=raw, output=str(output)))
    assert {name: counts[name] for name in ("rows_in", "rows_out", "rejected", "pairs_out")} == {
        "rows_in": 12, "rows_out": 12, "rejected": 0, "pairs_out": 0,
    }  # fmt: skip
    return output


def test_a_prepared_folder_keeps_the_missing_pole_and_the_turns(data) -> None:
    manifest = DatasetManifest.load(data)
    assert manifest.space == ONE_POLE
    assert manifest.space.one_pole_axes == (OTHER, AXIS)
    for prepared in read_records(data, manifest):
        assert prepared.turns[0] == Turn("user", "Which boat ?")
        assert len(prepared.of_side(0)) == 1
        assert len(prepared.of_side(1)) == 3


def test_an_evaluation_reports_one_and_names_what_is_not_defined(data, tiny_qwen2, tmp_path, monkeypatch) -> None:
    def ask_in_this_process(requests, *, num_workers, kept):
        return [read_answers(PolicyActor(job)(items_table(items)).to_pylist()) for items, job in requests]

    monkeypatch.setattr(evaluate, "ensure_ray", lambda: None)
    monkeypatch.setattr(evaluate, "ask_all_on_ray", ask_in_this_process)
    places = {"model": str(tiny_qwen2), "data": str(data), "output": str(tmp_path / "e")}
    config = EvaluateConfig(**places, policy="p", use_gpu=False)
    report = json.loads(Path(evaluate.run(config)["report_json"]).read_text())
    assert report["items"] == {"in": 12, "out": 12, "rejected": 0, "rejected_by_reason": {}}
    assert [(row["metric"], row["axis"], row["pole"], row["n"]) for row in report["rows"]] == [
        ("one", OTHER, "fitting", 3),
        ("one", AXIS, "fitting", 9),
    ]
    outcomes = [Outcome.from_json(line) for line in (tmp_path / "e" / "outcomes.jsonl").read_text().splitlines()]
    outcomes = [outcome for outcome in outcomes if outcome.axis == AXIS]
    share = sum(outcome.shows_only(outcome.chosen[0], 0) for outcome in outcomes) / 9
    assert report["rows"][1]["value"] == share
    first = sum(outcome.sides[0] == 0 for outcome in outcomes) / 9
    assert report["rows"][1]["position_baseline"] == first
    said, few = report["cautions"]
    assert "fewer than 30" in few
    assert "only pole of Shop boats, Travel boats" in said
    assert said.endswith("not defined: Both right, Flip, Leak.")
    assert said in (tmp_path / "e" / "report.html").read_text()
    assert {example["kind"] for example in report["examples"]} <= {"right", "wrong"}
    assert {option["pole"] for example in report["examples"] for option in example["options"]} == {
        "fitting", "not fitting",
    }  # fmt: skip


def test_an_item_of_one_pole_is_asked_once_and_no_pole_is_stated() -> None:
    asked = []

    def answer(questions):
        asked.extend((question.record.axis, question.side) for question in questions)
        return [WeightedChoice({1}, (0.1, 0.9)) for _ in questions]

    alone = replace(record(2), axis=AXIS)
    pair, one = ask([(record(1), "one"), (alone, "one")], answer, answer, one_pole_axes=(AXIS,))
    assert sorted(asked[:4], key=str) == [("Risk", 0), ("Risk", 1), ("Risk", None), (AXIS, None)]
    assert isinstance(pair, Outcome)
    assert isinstance(one, Outcome)
    assert len(pair.chosen) == 2
    assert (one.chosen, one.probabilities) == (({1},), ((0.1, 0.9),))
    assert Outcome.from_json(one.to_json()) == one
    assert outcome_counts("one", one, None) == outcome_counts("one", one, 0) == (float(one.sides[1] == 0), 1.0)
    assert [outcome_counts(name, one, None) for name in ("both_right", "flip", "leak")] == [None] * 3
    assert outcome_counts("one", one, 1) is None
    assert condition_text(ONE_POLE, AXIS, 0) == ""


def test_data_of_one_pole_is_checked_without_yardsticks(data) -> None:
    (part,) = data_check.run(data)["parts"].values()
    assert set(part["axes"]) == {AXIS, OTHER}
    assert not any(part["yardsticks"].values())


def test_training_and_encoding_refuse_data_of_one_pole(data, raw, tiny_qwen2, tmp_path) -> None:
    says = f"evaluation-only data: its axes have no second pole \\({OTHER}, {AXIS}\\).*pft evaluate"
    for role in ("data", "validation_data"):
        folders = {"data": "toyworld", role: str(data)}
        with pytest.raises(UserError, match=says):
            refuse_missing_inputs(RunConfig(name="x", model=str(tiny_qwen2), storage=str(tmp_path), **folders))
    with pytest.raises(UserError, match=says):
        held_out(data, tmp_path)
    with pytest.raises(UserError, match=says):
        run(PrepareConfig(source="prefeval", input=raw, output=str(tmp_path / "out"), model=str(tiny_qwen2)))
    assert not (tmp_path / "out").exists()


def test_a_prompt_of_one_pole_is_shown_once_and_states_nothing(data, tiny_qwen2) -> None:
    shown = show_prompt(str(data), str(tiny_qwen2), row=1)
    (side,) = shown["sides"]
    assert side["pole"] == "fitting"
    assert "Preference" not in side["text"]
    assert "Assistant: Good ." in side["text"]


def test_a_space_without_a_second_pole_is_stored_and_others_are_stored_as_before() -> None:
    assert PreferenceSpace.from_dict(json.loads(json.dumps(ONE_POLE.to_dict()))) == ONE_POLE
    assert ONE_POLE.axes[0].side("fitting") == ONE_POLE.axes[0].side("first") == 0
    with pytest.raises(UserError, match="has no pole 'second'"):
        ONE_POLE.axes[0].side("second")
    assert set(SPACE.to_dict()["axes"][0]) == {"name", "first", "second"}
