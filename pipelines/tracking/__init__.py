"""MLflow tracking off the step path: metrics, artifacts, registered policies."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.tracking.mlflow_run import (
        StepMetrics,
        flatten,
        mask_credentials,
        opening,
        quiet_mlflow,
        sqlite_path,
        sqlite_uri,
    )
    from pipelines.tracking.model_registry import register
    from pipelines.tracking.origin import commit
    from pipelines.tracking.settings import ARTIFACTS_NAME, TrackedConfig, TrackingSettings
    from pipelines.tracking.tracker import (
        DRAIN_LIMIT_S,
        SPOOL_NAME,
        START_NAME,
        Tracker,
        close_killed,
        read_metrics,
        tracked,
        tracking_uri,
    )
else:
    __getattr__ = lazy_exports(__name__)
