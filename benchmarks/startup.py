"""Measure how long a user waits for the first step: `python -m benchmarks.startup --json`.

Runs the quickstart's training for twelve steps, as a user starts it, twice in a new storage folder: from scratch, and
with existing data and encoded layer. Seconds count from the command until its effect is visible: `ray_up_s` and
`prepared_s` on its stderr, the first step in the run's metrics. `wind_down_s` counts from the last step to the exit.
`import_s` is the time to import torch, peft and DeepSpeed alone, on the same machine in the same minute; goals are
ratios to it.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from benchmarks import harness

STEPS = 12
GOALS = {"first_step_s": 2.7, "first_step_warm_s": 2.2}  # upper limits, as multiples of import_s
POLL_S = 0.02


def import_seconds() -> float:
    """Return the wall-clock seconds of a process that only imports torch, peft and DeepSpeed."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, peft, deepspeed"], check=True, capture_output=True)
    return time.perf_counter() - started


def run_once(storage: Path, *, name: str) -> dict[str, float]:
    """Run the command; return the seconds from its start to each mark and to its end. name: that of the run."""
    command = [sys.executable, "-m", "pipelines.cli", "train", "quickstart", f"train.max_steps={STEPS}"]
    command += [f"storage={storage}", f"name={name}"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    marks: dict[str, float] = {}

    def clock() -> float:
        return time.perf_counter() - started

    reader = threading.Thread(target=read_marks, args=(process.stderr, marks, clock))
    reader.start()
    watch_steps(process, storage, name, marks, clock)
    marks["end"] = clock()
    reader.join()
    if process.returncode:
        raise SystemExit(f"the command exited with {process.returncode}: {' '.join(command)}")
    return marks


def read_marks(stderr: IO[str], marks: dict[str, float], clock: Callable[[], float]) -> None:
    for line in stderr:
        harness.say(f"  {clock():6.1f} s  {line.rstrip()}")
        for name, text in (("ray_up", "Ray started"), ("prepared", " rows in, ")):
            if text in line:
                marks.setdefault(name, clock())


def watch_steps(process: Any, storage: Path, name: str, marks: dict[str, float], clock: Callable[[], float]) -> None:
    """Record when the run's metrics get their first row and their last; return when the process has exited."""
    while process.poll() is None:
        rows = sum(path.read_bytes().count(b"\n") for path in storage.glob(f"{name}-*/metrics.jsonl") if path.exists())
        if rows:
            marks.setdefault("first_step", clock())
        if rows >= STEPS:
            marks.setdefault("last_step", clock())
        time.sleep(POLL_S)


def measure() -> dict[str, Any]:
    """Return the figures, and whether all goals are met."""
    with tempfile.TemporaryDirectory(prefix="pft-startup-") as folder:
        imports = [import_seconds()]
        harness.say("from scratch")
        cold = run_once(Path(folder), name="first")
        imports.append(import_seconds())
        harness.say("with an existing layer")
        warm = run_once(Path(folder), name="second")
        imports.append(import_seconds())
    seconds = {
        "import_s": sorted(imports)[1],
        "ray_up_s": cold["ray_up"],
        "prepared_s": cold["prepared"],
        "first_step_s": cold["first_step"],
        "first_step_warm_s": warm["first_step"],
        "wind_down_s": warm["end"] - warm["last_step"],
    }
    ratios = {f"{name}_ratio": round(seconds[name] / seconds["import_s"], 2) for name in GOALS}
    met = all(seconds[name] <= goal * seconds["import_s"] for name, goal in GOALS.items())
    return {name: round(value, 2) for name, value in seconds.items()} | ratios | {"met": met, **harness.machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of one line per figure.")
    arguments = parser.parse_args()
    harness.finish(measure(), as_json=arguments.json)


if __name__ == "__main__":
    main()
