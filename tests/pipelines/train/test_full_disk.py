"""A full disk ends a training at its first attempt with one message, wherever it occurs."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.train import FailureConfig, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from pipelines.jobs.user_errors import unwrap_user_error
from pipelines.train.trainer import TrainingFailurePolicy
from tests.builders import record, write_dataset


def failed_with(cause: Exception) -> WorkerGroupError:
    """Return Ray Train's error for an exception in a worker."""
    return WorkerGroupError("rank 0", {0: UserExceptionWithTraceback(cause, "Traceback ...")})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_error_of_a_worker_is_not_retried(number: int) -> None:
    error = failed_with(OSError(number, os.strerror(number), "/runs/MANIFEST.json"))
    assert TrainingFailurePolicy(FailureConfig(max_failures=3)).make_decision(error) is FailureDecision.RAISE
    assert str(unwrap_user_error(error)).startswith(f"/runs/MANIFEST.json: {os.strerror(number)}: ")


def test_a_librarys_error_about_a_full_disk_or_quota_is_a_user_error() -> None:
    for text in ("No space left on device (os error 28)", "Disk quota exceeded (os error 122)"):
        assert "free some space" in str(unwrap_user_error(RuntimeError(f"I/O error: {text}")))


def test_other_failures_of_workers_are_retried() -> None:
    policy = TrainingFailurePolicy(FailureConfig(max_failures=3))
    assert policy.make_decision(failed_with(RuntimeError("lost"))) is FailureDecision.RETRY


TMPFS = 'mount -t tmpfs -o size=$1k none $2 && shift 2 && exec "$@"'


def on_small_disk(folder: Path, kilobytes: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a namespace in which the folder is a disk of this size; skip if that is not permitted."""
    namespace = ["unshare", "-Urm", "bash", "-c", TMPFS, "bash", str(kilobytes), str(folder)]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine lets nobody mount a small disk")
    return subprocess.run([*namespace, *command], capture_output=True, text=True, timeout=100, check=False)


def test_a_full_disk_during_prepare_is_one_line_and_nothing_is_left(tmp_path: Path) -> None:
    (disk := tmp_path / "disk").mkdir()
    given = {"axis": "Pace", "responses": {"Fast": "go", "Slow": "stay"}}
    rows = ({**given, "scenario": f"Plan {n} of {n * 7919 % 1_000_003}."} for n in range(4000))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pft = f"{sys.executable} -m pipelines.cli prepare --source json --input {tmp_path}/rows.jsonl --output {disk}/data"
    done = on_small_disk(disk, 48, "bash", "-c", f"{pft}; code=$?; ls -A {disk}; exit $code")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert "No space left on device" in done.stderr


# Places where a training writes: calls of a worker, and of the driver.
PLACES = {
    "state": ("pft_core.training.engines.engine", "save_file"),
    "manifest": ("pft_core.training.checkpoint", "write_json"),
    "upload": ("ray.train.v2._internal.execution.storage.StorageContext", "persist_current_checkpoint"),
    "metrics": ("pipelines.tracking.tracker.Tracker", "log"),
}
FULL = """
import errno, os, pkgutil
from pathlib import Path

where = pkgutil.resolve_name(PLACE)

def full(*_, **__):
    with Path(__file__).with_name("attempts").open("a") as attempts:
        attempts.write("x")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/disk")

setattr(where, NAME, full)
"""


def recipe_in(folder: Path, model: Path, place: str) -> Path:
    module, name = PLACES[place]
    (folder / "full.py").write_text(FULL.replace("PLACE", repr(module)).replace("NAME", repr(name)))
    chosen: dict[str, Any] = {
        "name": "r", "model": str(model), "data": str(write_dataset(folder / "data", [record(n) for n in range(40)])),
        "train": {"pairs_per_step": 4, "max_steps": 400, "precision": "fp32", "checkpoint_every": 5},
        "lora": {"r": 4, "alpha": 8}, "engine": {"name": "torch"}, "plugins": [str(folder / "full.py")],
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(chosen))
    return folder / "recipe.yaml"


@pytest.mark.ray
@pytest.mark.own_ray
@pytest.mark.slow  # the decision itself is tested above
@pytest.mark.timeout(300)
@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_in_training_is_one_line_and_one_attempt(place: str, tiny_qwen2: Path, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-m", "pipelines.cli", "train", str(recipe_in(tmp_path, tiny_qwen2, place))]
    done = subprocess.run(
        [*command, f"storage={tmp_path / 'runs'}"],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary"), "RAY_TMPDIR": "/tmp"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) <= 20, done.stderr
    assert "Traceback" not in done.stderr
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "No space left on device" in lines[-1]
    assert (tmp_path / "attempts").read_text() == "x"
    assert not list((tmp_path / "temporary").glob("pft-checkpoint-*"))
