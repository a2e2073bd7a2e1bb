"""The whole pipeline on the embedded data."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pft_core.files import read_json
from pipelines import embedded_data, quickstart
from pipelines.config import load_config

pytestmark = pytest.mark.ray

ROW_KEYS = {
    "policy", "axis", "pole", "trained_pole", "metric", "value", "n", "num_scenarios", "low", "high",
    "position_baseline", "unparsed",
}  # fmt: skip


def rows_of(result: dict) -> list[dict]:
    return read_json(Path(result["report_json"]), what="a report")["rows"]


@pytest.mark.own_ray
def test_the_pipeline_writes_a_complete_report(own_ray, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embedded_data, "NUM_PER_AXIS", {"train": 24, "validation": 8, "test": 8})
    result = quickstart.run(load_config("quickstart", [f"storage={tmp_path}", "train.max_steps=2"]))
    report = read_json(Path(result["report_json"]), what="a report")
    assert {"rows", "timings", "config", "digests"} <= report.keys()
    assert all(row.keys() == ROW_KEYS for row in report["rows"])
    assert {row["policy"] for row in report["rows"]} == {"base", "sft:first", "pft"}
    assert {row["metric"] for row in report["rows"]} >= {"one", "both_right", "flip", "leak"}
    one = {(row["policy"], row["axis"], row["pole"]): row for row in report["rows"] if row["metric"] == "one"}
    assert len(one) == 3 * 3 * 2
    assert [one["sft:first", "Risk", pole]["trained_pole"] for pole in ("Daring", "Careful")] == [True, False]
    assert one["base", "Risk", "Daring"]["trained_pole"] is None
    HTMLParser().feed(Path(result["report_html"]).read_text())
    assert (tmp_path / "mlflow.db").is_file()
    for policy in ("sft-first", "pft"):
        steps = [json.loads(line)["step"] for line in (tmp_path / "quickstart" / policy / "metrics.jsonl").open()]
        assert steps == [1, 2]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parent = runs.pop("quickstart").info.run_id
    assert runs.keys() == {"sft-first", "pft", "evaluate base", "evaluate sft:first", "evaluate pft"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1])
def test_one_sided_training_leaves_the_other_pole_behind_and_paired_training_does_not(
    ray_cluster, tmp_path, seed
) -> None:
    rows = rows_of(quickstart.run(load_config("quickstart", [f"storage={tmp_path}", f"seed={seed}"])))
    one = [row for row in rows if row["metric"] == "one"]
    assert {row["n"] >= 300 for row in one} == {True}
    for row in one:
        assert row["position_baseline"] == pytest.approx(0.5, abs=0.05)
        if row["policy"] == "base":
            assert row["value"] == pytest.approx(0.5, abs=0.1)
        elif row["trained_pole"]:
            assert row["value"] >= 0.90, row
        else:
            assert row["value"] <= 0.60, row
