"""The tracking section of a recipe."""

from typing import Any, Protocol

from pft_core.settings import Settings

ARTIFACTS_NAME = "mlartifacts"  # MLflow's own name for the folder beside a store


class TrackingSettings(Settings):
    """Where MLflow stores the run."""

    uri: str | None = None  # the MLflow store; null: MLFLOW_TRACKING_URI, else an SQLite file in storage
    experiment: str = "pft"  # the MLflow experiment that gets the run
    parent: str | None = None  # run key of the search or comparison that contains the run


class TrackedConfig(Protocol):
    """The part of any job's config that tracking reads."""

    @property
    def storage(self) -> str:
        """The folder of the runs."""

    @property
    def tracking(self) -> TrackingSettings:
        """The settings of tracking."""

    def model_dump(self) -> dict[str, Any]:
        """Return the config as JSON holds it."""
