"""Trained policies in MLflow's model registry: each version of a model is a run; aliases point to versions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pft_core.errors import UserError
from pipelines.tracking.mlflow_run import find_run, mask_credentials, opening, quiet_mlflow
from pipelines.tracking.settings import TrackedConfig
from pipelines.tracking.tracker import tracking_uri


def register(config: TrackedConfig, run_key: str, *, name: str, aliases: Sequence[str], tags: Mapping[str, str]) -> str:
    """Register the tracked run with this key as a version of the model `name`, and point the aliases to it.

    The files of a version are the run's artifacts: model_ref.json and the adapter. A run that is registered already
    keeps its version. Returns the version number. Raises UserError if the server refuses.
    """
    quiet_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(config.tracking.uri, Path(config.storage))
    try:
        with opening(uri):
            client = MlflowClient(tracking_uri=uri)
            run = find_run(client, config.tracking.experiment, run_key)
            if run is None:
                raise UserError(f"MLflow at {mask_credentials(uri)} has no run with the key {run_key} to register")
            version = _version(client, name, run, tags)
            for alias in aliases:
                client.set_registered_model_alias(name, alias, version)
            return version
    except MlflowException as error:
        reason = mask_credentials(str(error)).splitlines()[0]
        raise UserError(f"MLflow at {mask_credentials(uri)}: cannot register {name!r}: {reason}") from None


def _version(client: Any, name: str, run: Any, tags: Mapping[str, str]) -> str:
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name)
    run_id = run.info.run_id
    known = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if known:
        return str(known[0].version)
    return str(client.create_model_version(name, run.info.artifact_uri, run_id, tags=dict(tags)).version)
