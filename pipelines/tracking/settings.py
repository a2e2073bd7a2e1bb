"""The tracking section of a recipe."""

from typing import Any, Protocol

from pft_core.settings import Settings


class TrackingSettings(Settings):
    """Where MLflow stores the run. uri: default MLFLOW_TRACKING_URI, else an SQLite file in the storage folder."""

    uri: str | None = None
    experiment: str = "pft"
    parent: str | None = None  # run key of the search or comparison that contains the run


class TrackedConfig(Protocol):
    """The part of any job's config that tracking reads."""

    @property
    def storage(self) -> str: ...
    @property
    def tracking(self) -> TrackingSettings: ...
    def model_dump(self) -> dict[str, Any]: ...
