"""A training, a comparison and a search are killed and started again, as by a user."""

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pft_core.files import file_sha256
from tests.builders import record, write_dataset

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(600)]


def start(recipe: Path, storage: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipelines.cli", "train", str(recipe), f"storage={storage}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finish(process: subprocess.Popen) -> dict:
    stdout, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(stdout)


def test_a_killed_training_continues_and_ends_with_the_same_adapter(tiny_qwen2, tmp_path) -> None:
    data = write_dataset(tmp_path / "data", [record(n) for n in range(40)])
    recipe = tmp_path / "recipe.yaml"
    train = {"pairs_per_step": 4, "max_steps": 400, "lr": 1e-2, "precision": "fp32", "checkpoint_every": 20}
    recipe.write_text(yaml.safe_dump({"name": "killed", "data": str(data), "model": str(tiny_qwen2), "train": train}))
    whole = finish(start(recipe, tmp_path / "whole"))
    process = start(recipe, tmp_path / "cut")
    # Two, since Ray may not have registered the newest yet.
    while len(list((tmp_path / "cut").glob("killed-*/checkpoints/checkpoint_*/MANIFEST.json"))) < 2:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.1)
    process.kill()
    process.wait()
    resumed = finish(start(recipe, tmp_path / "cut"))
    assert 0 < resumed["resumed_from"] < 400
    assert resumed["steps"] == 400
    hashes = {file_sha256(Path(run["adapter"]) / "adapter_model.safetensors") for run in (whole, resumed)}
    assert len(hashes) == 1
    steps = [json.loads(line)["step"] for line in (Path(resumed["run_dir"]) / "metrics.jsonl").open()]
    assert steps == list(range(1, 401))


def compare(suite: Path, storage: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipelines.cli", "compare", str(suite), "--storage", str(storage)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finished_cells(storage: Path) -> dict[str, dict]:
    jobs = {path.parent.name: json.loads(path.read_text()) for path in storage.glob("compare/cells/*/job.json")}
    return {name: job for name, job in jobs.items() if job["status"] == "finished"}


def suite_in(folder: Path) -> Path:
    suite = folder / "suite.yaml"
    size = {"seeds": [0, 1, 2, 3], "test_per_axis": 20, "run": {"train": {"max_steps": 40}}}
    suite.write_text(yaml.safe_dump({"name": "cut", "title": "cut", "methods": ["pft"], "sizes": {"tiny": size}}))
    return suite


def test_a_killed_comparison_continues_and_repeats_no_finished_cell(tmp_path) -> None:
    suite = suite_in(tmp_path)
    process = compare(suite, tmp_path)
    while not finished_cells(tmp_path):
        assert process.poll() is None, "the comparison ended before it could be killed"
        time.sleep(0.1)
    process.kill()
    process.wait()
    before = finished_cells(tmp_path)
    assert 0 < len(before) < 4
    result = finish(compare(suite, tmp_path))
    assert (result["cells"], result["failed"]) == (4, 0)
    after = finished_cells(tmp_path)
    assert len(after) == 4
    assert {name: after[name]["started"] for name in before} == {name: job["started"] for name, job in before.items()}
    rows = json.loads(Path(result["report_json"]).read_text())["rows"]
    assert {row["n_seeds"] for row in rows} == {4}


def search(storage: Path) -> subprocess.Popen:
    asked = ["quickstart", f"storage={storage}", "train.max_steps=40", "search.limit_per_axis=10"]
    asked += ["search.alphas=[0,1,2]", "search.betas=[0,1,2]"]
    command = [sys.executable, "-m", "pipelines.cli", "tune", *asked]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finished_trials(storage: Path) -> dict[str, dict]:
    jobs = {path.parent.name: json.loads(path.read_text()) for path in storage.glob("tune/trials/*/job.json")}
    return {name: job for name, job in jobs.items() if job["status"] == "finished"}


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_killed_search_continues_and_repeats_no_finished_trial(tmp_path, how, code) -> None:
    process = search(tmp_path)
    while not finished_trials(tmp_path):
        assert process.poll() is None, "the search ended before it could be killed"
        time.sleep(0.1)
    process.send_signal(how)
    assert process.wait() == code
    before = finished_trials(tmp_path)
    assert 0 < len(before) < 6
    result = finish(search(tmp_path))
    after = finished_trials(tmp_path)
    assert len(after) == 6  # 0:1, 1:2, 1:1, 2:1, 1:0, and the base
    assert {name: after[name]["started"] for name in before} == {name: job["started"] for name, job in before.items()}
    assert {trial["status"] for trial in json.loads(Path(result["report_json"]).read_text())["trials"]} == {"finished"}


def evaluate(data: Path, output: Path) -> subprocess.Popen:
    words = ["--model", "toyworld", "--data", str(data), "--output", str(output), "--policy", "p"]
    command = [sys.executable, "-m", "pipelines.cli", "evaluate", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_evaluation_goes_on_from_its_finished_groups(tmp_path) -> None:
    data = write_dataset(tmp_path / "data", [record(n) for n in range(600)])
    process = evaluate(data, tmp_path / "cut")
    while len(list((tmp_path / "cut").glob("finished_groups/*.jsonl"))) < 2:
        assert process.poll() is None, "the evaluation ended before it could be killed"
        time.sleep(0.05)
    process.kill()
    process.communicate()
    shutil.rmtree(data / "base_answers")  # else the answers of this base would all be reused
    process = evaluate(data, tmp_path / "cut")
    said = process.communicate()[1]
    assert process.returncode == 0
    assert re.search(r"evaluating \d+ items with 1 workers; \d+ more were answered", " ".join(said.split()))
    shutil.rmtree(data / "base_answers")
    finish(evaluate(data, tmp_path / "whole"))
    for name in ("outcomes.jsonl", "rejects.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    cut, whole = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("cut", "whole"))
    assert (cut["rows"], cut["items"]) == (whole["rows"], whole["items"])
    assert not (tmp_path / "cut" / "finished_groups").exists()


VERBS = {
    "prepare": (["--source", "json", "--num-workers", "1", "--output", "{0}/data", "--input", "{0}/rows"], "Ray"),
    "train": (["quickstart", "train.max_steps=4000", "train.checkpoint_every=5", "storage={0}"], "step [2-9]"),
    "quickstart": (["storage={0}"], "step"),
    "tune": (["quickstart", "storage={0}", "search.alphas=[0,1,2]", "search.betas=[0,1,2]"], "to go"),
    "evaluate": (["--data", "{0}/test", "--model", "toyworld", "--output", "{0}/report"], "Ray"),
    "compare": (["{0}/suite.yaml", "--storage", "{0}"], "to go"),
}


BOTH = {"Fast": "go", "Slow": "stay"}


def rows_in(folder: Path, num_files: int) -> None:
    """Write files of rows that take seconds to read, each one task of Ray Data."""
    folder.mkdir()
    for number in range(num_files):
        rows = ({"axis": "Pace", "scenario": f"Plan {number}: {n}.", "responses": BOTH} for n in range(20_000))
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_ends_within_ten_seconds_of_a_signal_and_no_run_stays_running(tmp_path, verb, number) -> None:
    words, begun = VERBS[verb]
    suite_in(tmp_path)
    rows_in(tmp_path / "rows", num_files=8 if verb == "prepare" else 0)
    write_dataset(tmp_path / "test", [record(n) for n in range(2000)])
    command = [sys.executable, "-m", "pipelines.cli", verb, *(word.format(tmp_path) for word in words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not re.search(begun, process.stderr.readline()):
        assert process.poll() is None, "the verb ended before it could be interrupted"
    time.sleep(1.0)
    process.send_signal(number)
    sent = time.monotonic()
    out, said = process.communicate()
    assert time.monotonic() - sent < 10
    assert (process.returncode, out) == (128 + number, "")
    assert said.splitlines()[-1].startswith(f"interrupted by {signal.Signals(number).name}: run the same command to ")
    assert "Traceback" not in said
    assert "***" not in said  # marks a C++ stack trace
    assert "running" not in {json.loads(path.read_text())["status"] for path in tmp_path.rglob("job.json")}
    for store in tmp_path.rglob("mlflow.db"):
        statuses = sqlite3.connect(store).execute("SELECT status FROM runs").fetchall()
        assert ("RUNNING",) not in statuses
