import json
from pathlib import Path

import pytest

from pft_core.data import SIDES
from pft_core.errors import UserError
from pft_core.evaluation.metrics.metric_rows import report_rows
from pft_core.evaluation.metrics.outcome import Outcome
from pft_core.evaluation.outcome_files import write_outcomes
from pft_core.evaluation.significance import mcnemar, paired_t
from pft_core.files import read_json
from pipelines.cli import spread_inputs
from pipelines.compare.outcomes.job import compare_evaluations
from pipelines.reporting.run_report import write_report
from tests.builders import SPACE


def outcome(number: int, *, right: bool, scenario: str = "") -> Outcome:
    chosen = (frozenset({0}), frozenset({1 if right else 0}))
    return Outcome(f"i{number:02}", scenario or f"s{number}", "Risk", "one", (0, 1), chosen)


def evaluation(folder: Path, policy: str, outcomes: list[Outcome], *, data: str = "d", task: str = "choices") -> Path:
    """Write a folder as `pft evaluate` does."""
    write_report(
        {
            "rows": report_rows(outcomes, policy=policy, space=SPACE, trained_poles=None),
            "timings": {"ask": 1.0},
            "config": {"task": task, "data": "data", "model": policy},
            "digests": {"data": data, "model": policy},
            "cautions": ["read this"],
        },
        folder,
    )
    write_outcomes(folder, outcomes)
    return folder


def differences(folders: list[Path], storage: Path) -> dict[tuple[str, str | None, str | None], dict]:
    report = read_json(Path(compare_evaluations(folders, storage=storage)["report_json"]), what="a report")
    return {(row["metric"], row["axis"], row["pole"]): row for row in report["differences"]}


def test_two_evaluations_are_tested_item_by_item_and_stand_in_one_report(tmp_path, capsys) -> None:
    # Both right: all 12 items of a and 4 of b, so 8 items are right only in a.
    a = evaluation(tmp_path / "a", "pft", [outcome(i, right=True) for i in range(12)])
    b = evaluation(tmp_path / "b", "base", [outcome(i, right=i < 4) for i in range(12)])

    result = compare_evaluations([a, b], storage=tmp_path / "runs")

    report = read_json(Path(result["report_json"]), what="a report")
    (row,) = (r for r in report["differences"] if r["metric"] == "both_right" and r["axis"] == "Risk")
    assert (row["a"], row["b"], row["n"], row["test"]) == (1.0, pytest.approx(1 / 3), 12, "mcnemar")
    assert row["difference"] == pytest.approx(2 / 3)
    assert row["low"] < 2 / 3 < row["high"]
    assert row["p"] == mcnemar([1] * 12, [1] * 4 + [0] * 8) == pytest.approx(2 / 2**8)
    assert row["p_holm"] >= row["p"]
    assert {r["policy"] for r in report["rows"]} == {"pft", "base"}
    assert report["cautions"] == ["pft: read this", "base: read this"]
    page = Path(result["report_html"]).read_text(encoding="utf-8")
    assert all(text in page for text in ("Side by side", "McNemar", "pft minus base"))
    assert "Both right" in capsys.readouterr().err


def test_each_pole_has_the_values_of_its_own_row(tmp_path) -> None:
    a = evaluation(tmp_path / "a", "pft", [outcome(i, right=True) for i in range(6)])
    b = evaluation(tmp_path / "b", "base", [outcome(i, right=i < 2) for i in range(6)])

    found = differences([a, b], tmp_path)

    for each, side in ((a, "a"), (b, "b")):
        for row in read_json(each / "report.json", what="a report")["rows"]:
            assert found[row["metric"], row["axis"], row["pole"]][side] == pytest.approx(row["value"]), row
    assert len(SIDES) == sum(metric == "one" and axis == "Risk" for metric, axis, _ in found)


def test_items_that_share_a_scenario_are_tested_by_scenario(tmp_path) -> None:
    def pairs(right: int) -> list[Outcome]:
        return [outcome(i, right=i < right, scenario=f"s{i // 2}") for i in range(8)]

    a, b = evaluation(tmp_path / "a", "pft", pairs(7)), evaluation(tmp_path / "b", "base", pairs(2))

    row = differences([a, b], tmp_path)["both_right", "Risk", None]

    assert row["test"] == "paired_t"
    assert row["p"] == pytest.approx(paired_t([0, 2, 2, 1]))  # right in each of four scenarios: 2,2,2,1 and 2,0,0,0


def test_policies_of_one_name_are_told_apart_by_their_folders(tmp_path) -> None:
    folders = [
        evaluation(tmp_path / name, "pft", [outcome(i, right=i < n) for i in range(4)])
        for name, n in (("a", 4), ("b", 1))
    ]
    report = read_json(Path(compare_evaluations(folders, storage=tmp_path)["report_json"]), what="a report")
    assert report["compared"] == [f"pft ({folder})" for folder in folders]


def test_evaluations_of_other_data_or_items_are_refused_in_one_line(tmp_path) -> None:
    items = [outcome(i, right=True) for i in range(4)]
    a = evaluation(tmp_path / "a", "pft", items)
    others = {
        "different data": evaluation(tmp_path / "b", "base", items, data="e"),
        "different tasks": evaluation(tmp_path / "c", "base", items, task="capability"),
        "1 items are only in the first": evaluation(tmp_path / "d", "base", items[:3]),
        "no report.json in this folder": tmp_path / "nothing",
        "both are the same evaluation": a,
    }
    (tmp_path / "c" / "outcomes.jsonl").write_text(
        json.dumps({"item_id": "i", "scenario": "i", "axis": None, "side": None, "reply": [0], "score": 1.0})
    )
    for message, other in others.items():
        with pytest.raises(UserError, match=message) as caught:
            compare_evaluations([a, other], storage=tmp_path / "runs")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match="expected two folders, got 1"):
        compare_evaluations([a], storage=tmp_path / "runs")


def test_a_task_of_its_own_is_compared_by_its_scores(tmp_path) -> None:
    def of_task(name: str, scores: list[float | None]) -> Path:
        row = {
            "policy": name, "axis": None, "pole": None, "trained_pole": None, "metric": "capability", "value": 0.5,
            "n": len(scores), "low": 0.0, "high": 1.0, "position_baseline": None, "unparsed": 0.0,
        }  # fmt: skip
        parts = {"timings": {}, "config": {"task": "capability"}, "digests": {"data": "d"}}
        write_report({"rows": [row], **parts}, tmp_path / name)
        lines = [
            {"item_id": f"i{i}", "scenario": f"i{i}", "axis": None, "side": None, "reply": [0], "score": score}
            for i, score in enumerate(scores)
        ]
        (tmp_path / name / "outcomes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path / name

    found = differences([of_task("a", [1.0, 1.0, 1.0, None]), of_task("b", [0.0, 1.0, 0.0, 0.0])], tmp_path)

    row = found["capability", None, None]
    assert (row["a"], row["b"], row["test"], row["p"]) == (0.75, 0.25, "mcnemar", 0.5)  # two items, both a's


def test_both_folders_stand_after_one_option() -> None:
    given = ["compare", "--outcomes", "a", "b", "--storage", "s"]
    assert list(spread_inputs(given)) == ["compare", "--outcomes", "a", "--outcomes", "b", "--storage", "s"]
