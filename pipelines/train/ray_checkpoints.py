"""Repair Ray Train's own list of a run's checkpoints before the run continues.

Ray overwrites the list in place: a full disk or a lost machine leaves it empty, and no later start can read it. A
checkpoint may also be complete but not listed, or listed but damaged.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState, _TrainingResultState

from pft_core.files import write_text
from pft_core.training import CHECKPOINT_MANIFEST_NAME, CheckpointError, verify_checkpoint
from pipelines.console import console

SNAPSHOT_NAME = "checkpoint_manager_snapshot.json"


def mend_snapshot(folder: Path, metrics_by_step: Mapping[int, dict[str, Any]], *, score: str | None) -> None:
    """Rewrite the list from the checkpoints in `folder` that pass verification.

    Damaged checkpoints are reported and kept; unfinished ones are deleted. metrics_by_step: metrics reported with each
    checkpoint. score: metric by which Ray orders checkpoints, lowest is best; None: by time.
    """
    names = {steps: path.name for path in _finished_checkpoints(folder) if (steps := _steps_if_valid(path)) is not None}
    results = [
        _TrainingResultState(checkpoint_dir_name=names[steps], metrics=dict(metrics_by_step.get(steps, {})))
        for steps in sorted(names)
    ]
    order = list(range(len(results)))
    if score:
        # Ray orders its list from worst to best, and deletes from the front.
        order.sort(key=lambda i: -results[i].metrics.get(score, float("inf")))
    state = _CheckpointManagerState(
        checkpoint_results=[results[i] for i in order],
        checkpoint_report_indices=order,
        latest_checkpoint_result=results[-1] if results else None,
        pending_training_results=[],
        pending_validation_specs=[],
        current_report_index=len(results),
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    write_text(folder / SNAPSHOT_NAME, state.model_dump_json())


def _finished_checkpoints(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("checkpoint_*/")):
        if (path / CHECKPOINT_MANIFEST_NAME).exists():
            yield path
        else:
            shutil.rmtree(path)


def _steps_if_valid(folder: Path) -> int | None:
    try:
        return int(verify_checkpoint(folder)["progress"]["steps_done"])
    except CheckpointError as error:
        console.print(f"{error}: using an older checkpoint", style="yellow", soft_wrap=True)
        return None
