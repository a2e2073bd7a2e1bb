"""Log an evaluation as an MLflow run: its metrics, its report and its data."""

import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from pft_core.data import MANIFEST_NAME, opened
from pft_core.evaluation import OUTCOMES_NAME, EvaluationRow
from pft_core.files import digest
from pft_core.policies import MODEL_REF_NAME
from pipelines.evaluate.evaluate_config import EvaluateConfig, request_of
from pipelines.reporting import REPORT_NAMES, RunReport
from pipelines.tracking import Tracker, TrackingSettings, sqlite_path, sqlite_uri

RUN_CONFIG_NAME = "config.yaml"  # the config of a training run, beside its reference
STORE_NAME = "mlflow.db"
LEVELS = 3  # a run lies in its storage folder, or below it in the folder of a quickstart or a search


def track(config: EvaluateConfig, report: RunReport) -> None:
    """Log an evaluation after its report is written, if there is a place to log to.

    The place is set by the config or MLFLOW_TRACKING_URI, or is the store that tracked the evaluated run. Evaluating
    again continues the same MLflow run.
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
        run_key=digest(["evaluate", request_of(config), report["digests"]]),
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
    """Return where to log an evaluation; None to log nothing."""
    if config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return config.tracking
    model = Path(str(config.model)).resolve()
    run = model.parent if model.is_file() else model
    if config.endpoint is not None or not (run / MODEL_REF_NAME).is_file():
        return None
    settings = trained_tracking(run)
    if settings.uri and ((path := sqlite_path(settings.uri)) is None or path.is_file()):
        return settings
    stores = [folder / STORE_NAME for folder in list(run.parents)[:LEVELS]]
    store = next((path for path in stores if path.is_file()), None)
    return None if store is None else settings.model_copy(update={"uri": sqlite_uri(store)})


def trained_tracking(run: Path) -> TrackingSettings:
    """Return the tracking settings of a training run, as far as its evaluation can share them."""
    try:
        tracking = yaml.safe_load((run / RUN_CONFIG_NAME).read_text(encoding="utf-8"))["tracking"]
        return TrackingSettings(uri=tracking["uri"], experiment=tracking["experiment"])
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return TrackingSettings()  # a run of an older version, or one reduced to its adapter


def headline_metrics(rows: Sequence[EvaluationRow]) -> dict[str, float]:
    """Return a report's values under metric names for MLflow."""
    return {_name(row): row["value"] for row in rows}


def _name(row: EvaluationRow) -> str:
    return "/".join(part for part in (row["metric"], row["policy"], row["axis"], row["pole"]) if part is not None)
