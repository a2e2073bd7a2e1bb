"""Evaluations are logged as MLflow runs if a tracking store is set."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pft_core.files import write_json
from pft_core.policies.model_ref import MODEL_REF_NAME
from pipelines.config.run_config import RunConfig
from pipelines.evaluate.evaluate_config import EvaluateConfig, refuse_other_output
from pipelines.evaluate.tracking import track, tracking_of
from pipelines.quickstart import nested
from pipelines.reporting.run_report import write_report
from pipelines.tracking.settings import TrackingSettings
from pipelines.tracking.tracker import Tracker, tracking_uri
from tests.pipelines.compare.test_compare_outcomes import outcome


@pytest.fixture(autouse=True)
def no_uri_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def config(folder: Path, model: Path, **options: Any) -> EvaluateConfig:
    return EvaluateConfig(model=str(model), data=str(folder / "data"), output=str(folder / "out"), **options)


def trained_run(folder: Path, **tracking: Any) -> Path:
    """Write the files of a training run that matter here."""
    folder.mkdir(parents=True)
    write_json(folder / MODEL_REF_NAME, {})
    settings = {"uri": None, "experiment": "pft", "parent": None, **tracking}
    (folder / "config.yaml").write_text(yaml.safe_dump({"tracking": settings}))
    return folder


def test_an_evaluation_is_logged_where_the_evaluated_run_is(tmp_path) -> None:
    run = trained_run(tmp_path / "runs" / "quickstart" / "pft", experiment="mine", parent="k")
    assert tracking_of(config(tmp_path, run)) is None  # no store there

    (tmp_path / "runs" / "mlflow.db").touch()
    for model in (run, run / MODEL_REF_NAME):
        found = tracking_of(config(tmp_path, model))
        assert found == TrackingSettings(uri=tracking_uri(None, tmp_path / "runs"), experiment="mine")

    served = trained_run(tmp_path / "runs" / "b", uri="http://tracking:5000")
    assert tracking_of(config(tmp_path, served)).uri == "http://tracking:5000"


def test_a_plain_model_is_logged_where_the_environment_says(tmp_path, monkeypatch) -> None:
    evaluation = config(tmp_path, tmp_path / "base")
    assert tracking_of(evaluation) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_of(evaluation) == TrackingSettings()  # the tracker reads the variable


def test_an_evaluation_is_a_run_below_its_parent_with_numbers_and_report(tmp_path, monkeypatch) -> None:
    from mlflow import MlflowClient

    uri = tracking_uri(None, tmp_path)
    whole = {"uri": uri, "storage": tmp_path, "experiment": "pft", "run_name": "quickstart", "params": {}}
    Tracker.start(**whole, run_key="parent", run_dir=tmp_path).finish("FINISHED", limit_s=120)
    below = nested(RunConfig(name="x", storage=str(tmp_path)), "parent").tracking
    evaluation = config(tmp_path, tmp_path / "base", tracking=below.model_copy(update={"uri": uri}))
    row = {
        "policy": "pft", "axis": "Risk", "pole": "Bold", "trained_pole": True, "metric": "one", "value": 0.75, "n": 4,
        "low": 0.5, "high": 1.0, "position_baseline": 0.5, "unparsed": 0.0,
    }  # fmt: skip
    report: Any = {"rows": [row], "timings": {}, "config": evaluation.model_dump(exclude={"tracking"}), "digests": {}}
    write_report(report, tmp_path / "out")
    (tmp_path / "out" / "outcomes.jsonl").write_text(outcome(0, right=True).to_json() + "\n")

    for _ in range(2):  # the same evaluation again is the same run
        track(evaluation, report)

    client = MlflowClient(uri)
    child, parent = client.search_runs([client.get_experiment_by_name("pft").experiment_id])
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["kind"] == "evaluate"
    assert child.data.metrics["one/pft/Risk/Bold"] == 0.75
    assert {file.path for file in client.list_artifacts(child.info.run_id)} == {
        "report.json", "report.html", "outcomes.jsonl",
    }  # fmt: skip
    refuse_other_output(evaluation)  # files of tracking are not foreign files
