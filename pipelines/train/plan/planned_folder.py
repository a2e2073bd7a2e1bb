"""The folder of a planned run: what it would continue, and the files that it will write."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pft_core.data import SCENARIOS_NAME
from pft_core.policies import MODEL_REF_NAME
from pipelines.config import JOB_NAME, RunConfig
from pipelines.encode.job import LayerPlace
from pipelines.jobs import CHECKPOINTS, CONFIG_NAME, LOG_NAME, expected_run, is_locked, steps_saved
from pipelines.reporting import REPORT_NAMES
from pipelines.tracking import SPOOL_NAME, START_NAME, mask_credentials, tracking_uri
from pipelines.train.publish import policy_kind

OWN_FILES = (JOB_NAME, CONFIG_NAME, LOG_NAME, SPOOL_NAME, START_NAME, MODEL_REF_NAME, SCENARIOS_NAME, *REPORT_NAMES)


@dataclass(frozen=True)
class PlannedFolder:
    """The folder of a run. state: new, continue, finished or running. from_step: the step of its newest checkpoint."""

    run_dir: Path
    state: str
    from_step: int

    def __str__(self) -> str:
        said = {
            "new": "a new run",
            "continue": f"an unfinished run, which would continue from step {self.from_step}",
            "finished": "a finished run, whose result would be returned (--fresh starts over)",
            "running": "a run that another process is writing now",
        }
        return f"{self.run_dir}: {said[self.state]}"


def planned_folder(config: RunConfig, key: str, *, fresh: bool) -> PlannedFolder:
    """Return the folder of a run and its state. fresh: it would be deleted first. Raises UserError as a run does."""
    run_dir, job = expected_run(config, key)
    if is_locked(run_dir):
        state = "running"
    elif not job or fresh:
        state = "new"
    else:
        state = "finished" if job["status"] == "finished" else "continue"
    return PlannedFolder(run_dir, state, steps_saved(run_dir) if state == "continue" else 0)


def planned_files(config: RunConfig, run_dir: Path, places: Sequence[LayerPlace], moved: tuple[Path, str]) -> list[str]:
    """Return the files and folders that a run writes, and its MLflow store.

    places: of the layers of its data. moved: a folder that this plan uses in place of the storage folder, and that.
    """
    kind = policy_kind(config)
    folders = [CHECKPOINTS, kind, *([f"{kind}_best"] if config.train.validate_every else [])]
    layers = [str(place.folder) for place in places if not place.is_complete]
    data = [folder for place in layers if (folder := str(Path(place).parents[1])).startswith(f"{moved[0]}/")]
    inputs = [f"{path}/".replace(f"{moved[0]}/", f"{moved[1]}/", 1) for path in (*data, *layers)]
    own = [*OWN_FILES, *(f"{name}/" for name in folders)]
    store = mask_credentials(tracking_uri(config.tracking.uri, Path(config.storage)))
    return [*inputs, *(f"{run_dir}/{name}" for name in own), store]
