"""An evaluation as a run of MLflow: its numbers, its report, and the data that was asked."""

import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from pft_core.data import MANIFEST_NAME, opened
from pft_core.evaluation import OUTCOMES_NAME, EvaluationRow
from pft_core.files import digest
from pft_core.policies import MODEL_REF_NAME
from pipelines.evaluate.evaluate_config import EvaluateConfig, asked_for
from pipelines.reporting import REPORT_NAMES, RunReport
from pipelines.tracking import Tracker, TrackingSettings, sqlite_path, sqlite_uri

RUN_CONFIG_NAME = "config.yaml"  # of a trained run, beside its reference
STORE_NAME = "mlflow.db"
LEVELS = 3  # a run lies in its storage, or in a quickstart's or a search's folder there


def track(config: EvaluateConfig, report: RunReport) -> None:
    """Log an evaluation whose report is written, where something says where to: the config, MLFLOW_TRACKING_URI, or
    the store in which the evaluated run was tracked. Evaluating again goes on in the same run.
    """
    settings = tracking_of(config)
    if settings is None:
        return
    folder = Path(config.output)
    tracker = Tracker.start(
        uri=settings.uri,
        storage=folder,
        experiment=settings.experiment,
        run_name=f"evaluate {report['rows'][0]['policy']}" if report["rows"] else "evaluate",
        run_key=digest(["evaluate", asked_for(config), report["digests"]]),
        run_dir=folder,
        params=config.model_dump(exclude={"tracking"}),
        inputs=opened(config.data) if (Path(config.data) / MANIFEST_NAME).is_file() else [],
        contexts=("test",),
        tags={"kind": "evaluate"},
        parent=settings.parent,
    )
    tracker.log(0, headline_metrics(report["rows"]))
    for name in (*REPORT_NAMES, OUTCOMES_NAME):
        tracker.artifact(folder / name)
    tracker.finish("FINISHED")


def tracking_of(config: EvaluateConfig) -> TrackingSettings | None:
    """Where an evaluation is logged; None: nowhere."""
    if config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return config.tracking
    model = Path(str(config.model)).resolve()
    run = model.parent if model.is_file() else model
    if config.endpoint is not None or not (run / MODEL_REF_NAME).is_file():
        return None
    said = trained_tracking(run)
    if said.uri and ((path := sqlite_path(said.uri)) is None or path.is_file()):
        return said
    stores = [folder / STORE_NAME for folder in list(run.parents)[:LEVELS]]
    store = next((path for path in stores if path.is_file()), None)
    return None if store is None else said.model_copy(update={"uri": sqlite_uri(store)})


def trained_tracking(run: Path) -> TrackingSettings:
    """What the recipe of a trained run says of tracking, as far as an evaluation of it can share that."""
    try:
        said = yaml.safe_load((run / RUN_CONFIG_NAME).read_text(encoding="utf-8"))["tracking"]
        return TrackingSettings(uri=said["uri"], experiment=said["experiment"])
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return TrackingSettings()  # a run of older code, or one that was cut down to its adapter


def headline_metrics(rows: Sequence[EvaluationRow]) -> dict[str, float]:
    """Return a report's values under names that MLflow can list side by side."""
    return {_name(row): row["value"] for row in rows}


def _name(row: EvaluationRow) -> str:
    return "/".join(part for part in (row["metric"], row["policy"], row["axis"], row["pole"]) if part is not None)
