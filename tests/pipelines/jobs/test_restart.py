"""A job whose code is unpacked again while it runs restarts once, or reports the loss."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pft_core.errors import UserError
from pipelines.jobs.restart import CODE, missing_code

ROOT = Path(__file__).resolve().parents[3]


def test_only_this_code_counts_as_missing() -> None:
    gone = FileNotFoundError(2, "No such file or directory", str(CODE / "pipelines" / "jobs" / "capacity.py"))
    assert missing_code(gone) == gone.filename
    wrapped = RuntimeError("a task failed")
    wrapped.__cause__ = ModuleNotFoundError("No module named 'pipelines'", name="pipelines.train")
    assert missing_code(wrapped) == "pipelines.train"
    assert missing_code(FileNotFoundError(2, "No such file or directory", "/data/a.jsonl")) is None
    assert missing_code(ModuleNotFoundError("No module named 'own'", name="own")) is None
    said = UserError("plugin own.py: import failed")
    said.__cause__ = ModuleNotFoundError("No module named 'pipelines.own'", name="pipelines.own")
    assert missing_code(said) is None


def test_a_replaced_current_folder_is_entered_again(tmp_path: Path) -> None:
    folder = tmp_path / "upload"
    folder.mkdir()
    code = f"""
import os, shutil
from pathlib import Path
from pipelines.jobs.restart import enter_again, missing_code
shutil.rmtree({str(folder)!r})
try:
    Path("runs").resolve()
except FileNotFoundError as error:
    assert missing_code(error) == {str(folder)!r}
enter_again()
os.mkdir({str(folder)!r})
enter_again()
assert os.getcwd() == {str(folder)!r}
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, cwd=folder, check=True)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_file_missing_for_a_while_costs_one_restart(comes_back: bool, tmp_path: Path) -> None:
    for package in ("pft_core", "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "base_model"))
    # Present when its folder is listed, missing when it is read.
    missing = tmp_path / "pipelines" / "strict_gone.py"
    code = f"""
import os, sys
sys.argv = ["pft", "show", "config", "quickstart"]
from pipelines import cli
if {not comes_back} or "PFT_STARTED_AGAIN" not in os.environ:
    def gone(*_): open({str(missing)!r})
    cli.load_config = gone
cli.main()
"""
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "PWD": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"{missing} disappeared because its folder is being unpacked again: restarting the command" in done.stderr
    assert "Traceback" not in done.stderr
    if comes_back:
        assert done.returncode == 0
        assert '"name": "quickstart"' in done.stdout
    else:
        assert done.returncode == 2
        assert (
            done.stderr.splitlines()[-1]
            == f"error: {missing} disappeared during the run: run the same command to continue"
        )
