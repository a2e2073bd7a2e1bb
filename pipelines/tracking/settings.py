"""What a recipe says of tracking."""

from typing import Any, Protocol

from pft_core.settings import Settings


class TrackingSettings(Settings):
    """Where MLflow keeps the run; None: the environment's MLFLOW_TRACKING_URI, else SQLite in the storage folder."""

    uri: str | None = None
    experiment: str = "pft"
    parent: str | None = None  # the run key of the search or comparison that the run is a part of


class TrackedConfig(Protocol):
    """What tracking reads of a job's config, whatever the job is."""

    @property
    def storage(self) -> str:
        """The folder of the runs."""

    @property
    def tracking(self) -> TrackingSettings:
        """The settings of tracking."""

    def model_dump(self) -> dict[str, Any]:
        """Return the config as JSON holds it."""
