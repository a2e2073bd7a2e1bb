"""A signal to a verb gives one line, the signal's exit code and a marked run, whatever libraries do with it."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pft_core.files import write_json
from pipelines.jobs.runner import continue_message

VERB = """
import sys, time
import typer
from pathlib import Path
from pipelines.cli import verb
from pipelines.config import load_config
from pipelines import interruption
from pipelines.jobs import run_job
interruption.UNWIND_S = 0.5

def swallow(run_dir, key):
    print("works", file=sys.stderr, flush=True)
    until = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < until:
        try:
            time.sleep(0.1)
        except BaseException as error:
            if sys.argv[1] == "another":
                raise ImportError("made of it") from None
            if sys.argv[1] == "raised":
                raise
    return {}

@verb
def command(words: list[str]):
    config = load_config("quickstart", ["data=null", "name=r", f"storage={sys.argv[3]}"])
    return run_job(config, swallow, fresh=False, kind="train")

app = typer.Typer()
app.command()(command)
app()
"""


def interrupted(tmp_path: Path, how: str, seconds: float, number: int, *, ignored: bool = False) -> tuple[int, str]:
    """Start the verb in the background of a script, send the signal while it works; return exit code and stderr."""
    command = [sys.executable, "-c", VERB, how, str(seconds), str(tmp_path)]
    ignoring = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=ignoring)
    assert process.stderr is not None
    assert process.stderr.readline() == "works\n"
    process.send_signal(number)
    process.send_signal(number)  # as `timeout` does
    out, said = process.communicate(timeout=20)
    assert out == ""
    return process.returncode, said


@pytest.mark.parametrize(
    ("how", "seconds", "number", "ignored"),
    [
        ("raised", 20, signal.SIGTERM, False),
        ("another", 20, signal.SIGINT, True),  # as numpy raises during its import
        ("swallowed", 20, signal.SIGINT, False),
        ("swallowed", 0.2, signal.SIGTERM, False),  # and the work ends regularly
    ],
)
def test_a_signal_ends_a_verb_in_one_line_and_marks_its_run(
    how: str, seconds: float, number: int, ignored: bool, tmp_path: Path
) -> None:
    code, said = interrupted(tmp_path, how, seconds, number, ignored=ignored)
    (state,) = tmp_path.glob("r-*/job.json")
    assert json.loads(state.read_text())["status"] == "interrupted"
    name = signal.Signals(number).name
    assert (code, said) == (
        128 + number,
        f"interrupted by {name}: run the same command to continue in {state.parent}\n",
    )


def test_the_next_start_reports_the_step_from_which_it_continues(tmp_path: Path) -> None:
    assert continue_message("train", tmp_path) == f"train: continuing in {tmp_path} from step 0"
    assert continue_message("quickstart", tmp_path) == f"quickstart: continuing in {tmp_path}"
    for steps in (20, 100):
        (folder := tmp_path / "checkpoints" / f"checkpoint_{steps}").mkdir(parents=True)
        write_json(folder / "MANIFEST.json", {"progress": {"steps_done": steps}})
    (tmp_path / "checkpoints" / "checkpoint_100" / "MANIFEST.json").write_text("{")
    assert continue_message("cell", tmp_path) == f"cell: continuing in {tmp_path} from step 20"


def wait_for_handler(process: subprocess.Popen[str]) -> None:
    """Wait until the process catches SIGTERM, which the bare interpreter does not."""
    status = Path(f"/proc/{process.pid}/status")
    while not int(re.findall(r"SigCgt:\t(\w+)", status.read_text())[0], 16) >> (signal.SIGTERM - 1) & 1:
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.2, 0.5, 1.0])
def test_a_signal_while_the_verb_is_imported_is_one_line(number: int, after_s: float, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "train", "quickstart", f"storage={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_handler(process)
    time.sleep(after_s)
    process.send_signal(number)
    out, said = process.communicate(timeout=20)
    name = signal.Signals(number).name
    assert (process.returncode, out, said) == (
        128 + number,
        "",
        f"interrupted by {name}: run the same command to start again\n",
    )


SUBMIT = """
import sys, time
from cluster import submit
from pipelines.cli import app

def follow(*words, **options):
    print("works", file=sys.stderr, flush=True)
    time.sleep(20)

submit.run = follow
app(["submit", "--", "train", "quickstart"])
"""


def test_an_interruption_leaves_a_submitted_job_running() -> None:
    process = subprocess.Popen([sys.executable, "-c", SUBMIT], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "works\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    words = "the submitted job keeps running; run the same command to follow it again"
    assert (process.returncode, said) == (130, f"interrupted by SIGINT: {words}\n")
