"""Run folders are listed with what is known of them, whatever state they are in; one is shown, several compared."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pft_core.errors import UserError
from pft_core.files import write_json
from pipelines.config import RunConfig, load_config
from pipelines.evaluate.evaluate_config import EvaluateConfig
from pipelines.jobs import is_locked, locked, run_job
from pipelines.runs import job as runs
from pipelines.runs.figures import figures_of_report
from pipelines.runs.run import job_status


def config(storage: Path, name: str, *overrides: str) -> RunConfig:
    return load_config("quickstart", ["data=null", f"storage={storage}", f"name={name}", *overrides])


def trained(storage: Path, name: str, *overrides: str, error: RuntimeError | None = None, kind: str = "train") -> Path:
    """Make a run of three steps as a job does; with an error, it ends before its result."""

    def train(run_dir: Path, key: str) -> dict[str, Any]:
        rows = [{"step": i, "loss_first": 3.0 / i, "loss_second": 1.0 / i, "tokens_per_s": 10.0} for i in (1, 2, 3)]
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
        if error:
            raise error
        space = {"name": "tiny", "axes": [{"name": "Risk"}]}
        ref = {"base": "toyworld", "adapter": "adapter", "style": {"answer": "option"}, "space": space}
        write_json(run_dir / "model_ref.json", ref)
        return {"run_dir": str(run_dir), "steps": 3, "pairs": 24, "resumed_from": None}

    run_dir = storage / name
    with suppress(RuntimeError):
        run_job(config(storage, name, *overrides), train, fresh=False, kind=kind, run_dir=run_dir)
    return run_dir


def evaluated(storage: Path, name: str, model: Path, *, both_right: float, data: str = "data/test") -> Path:
    """Make an evaluation of two axes, of 10 and 30 items."""
    rows = [
        {"policy": "p", "axis": axis, "pole": None, "metric": "both_right", "value": value, "n": n}
        for axis, value, n in (("Risk", 0.0, 10), ("Pace", both_right * 4 / 3, 30))
    ]
    asked = EvaluateConfig(model=str(model), data=data, output=str(storage / name), precision="fp32")
    report = {"rows": rows, "timings": {"ask": 5.0, "statistics": 1.0}, "digests": {}}
    (storage / name).mkdir()
    write_json(storage / name / "report.json", report | {"config": asked.model_dump(exclude={"tracking"})})
    return storage / name


def rows_of(storage: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in runs.list_runs(storage)["runs"]}


def test_a_run_is_a_row_with_its_state_figures_and_size(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_dir = trained(tmp_path, "good")
    (run_dir / "adapter").mkdir()
    (run_dir / "adapter" / "weights").write_bytes(b"x" * 5_000_000)
    trained(tmp_path, "cut", error=RuntimeError("power cut"))
    good, cut = rows_of(tmp_path)["good"], rows_of(tmp_path)["cut"]
    assert (good["kind"], good["status"], good["attempt"], cut["status"]) == ("train", "finished", 1, "failed")
    assert good["figures"] == {"steps": 3, "pairs": 24, "loss_first": 1.0, "loss_second": 1 / 3, "tokens_per_s": 10.0}
    assert cut["figures"]["steps"] == 3
    assert "power cut" in cut["note"]
    assert 5_000_000 < good["bytes"] < 5_010_000
    table = capfd.readouterr().err
    assert "0.67" in table  # the mean of 1 and 1/3
    assert "5 MB" in table


def test_runs_inside_runs_and_searches_are_found_and_the_newest_is_first(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        trained(tmp_path, name)
        state = json.loads((tmp_path / name / "job.json").read_text())
        write_json(tmp_path / name / "job.json", state | {"started": f"2026-01-0{ord(name) - 96}T10:00:00+0000"})
    trained(tmp_path / "c", "inner", kind="trial:trained:abc")
    trained(tmp_path / "tune", "searched", kind="tune:grid:0123")
    assert list(rows_of(tmp_path))[-3:] == ["c", "b", "a"]
    assert {name: row["kind"] for name, row in rows_of(tmp_path).items() if "/" in name} == {
        "c/inner": "trial",
        "tune/searched": "tune:grid",
    }


def test_a_run_is_running_while_its_lock_is_held_and_was_interrupted_if_it_is_not(tmp_path: Path) -> None:
    run_dir = trained(tmp_path, "mine")
    state = json.loads((run_dir / "job.json").read_text())
    write_json(run_dir / "job.json", state | {"status": "running"})
    lock = tmp_path / ".mine.lock"
    lock.write_text("pid 1 on a machine")  # as a killed process leaves it
    killed = rows_of(tmp_path)["mine"]
    assert (killed["status"], killed["note"]) == ("interrupted", "its process was killed")
    with locked(run_dir):
        now = rows_of(tmp_path)["mine"]
        assert now["status"] == "running"
        assert 0 <= now["seconds"] < 60
    assert not is_locked(run_dir)


@pytest.mark.parametrize(
    ("written", "is_held", "status"),
    [("finished", True, "finished"), ("failed", True, "running"), ("interrupted", False, "interrupted")],
)
def test_only_a_run_that_is_not_finished_can_be_running(written: str, is_held: bool, status: str) -> None:
    assert job_status(written, is_held=is_held) == status


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("job.json", "{"),
        ("job.json", "[]"),
        ("job.json", "{}"),
        ("job.json", '{"kind": "train", "status": "finished", "started": 5, "result": 3}'),
        ("job.json", '{"kind": "train", "status": "running", "started": "yesterday"}'),
        ("metrics.jsonl", '{"no": "step"}\n'),
        ("metrics.jsonl", "\0\0\n"),
        ("report.json", '{"rows": 5}'),
        ("report.json", "\xff"),
    ],
)
def test_a_damaged_folder_is_a_row_that_names_its_fault(tmp_path, name, content, capfd) -> None:
    trained(tmp_path, "whole")
    damaged = trained(tmp_path, "torn")
    if name == "report.json":
        (damaged / "job.json").unlink()
    (damaged / name).write_text(content, encoding="latin-1")
    if "running" in content:
        with locked(damaged):
            rows = rows_of(tmp_path)
    else:
        rows = rows_of(tmp_path)
    assert (rows["torn"]["status"], rows["whole"]["status"]) == ("damaged", "finished")
    assert rows["torn"]["note"].startswith(f"{name}: ")
    assert f"{name}: " in capfd.readouterr().err


def test_a_trained_policy_shows_the_figures_of_its_evaluation(tmp_path: Path) -> None:
    run_dir = trained(tmp_path, "mine")
    evaluated(tmp_path, "mine-evaluation", run_dir / "model_ref.json", both_right=0.6)
    rows = rows_of(tmp_path)
    assert rows["mine-evaluation"]["figures"] == {"both_right": pytest.approx(0.6)}  # 30 of 40 items have 0.8
    assert (rows["mine-evaluation"]["kind"], rows["mine-evaluation"]["seconds"]) == ("evaluate", 6.0)
    assert rows["mine"]["figures"]["both_right"] == pytest.approx(0.6)
    shown = runs.show_run("mine", tmp_path)
    assert [row["name"] for row in shown["evaluations"]] == ["mine-evaluation"]
    assert runs.show_run("mine-evaluation", tmp_path)["config"]["precision"] == "fp32"


def test_a_policy_evaluated_on_two_data_sets_shows_no_figure_of_one_of_them(tmp_path: Path) -> None:
    run_dir = trained(tmp_path, "mine")
    for name, data in (("plain", "data/test"), ("twins", "data/twins")):
        evaluated(tmp_path, name, run_dir / "model_ref.json", both_right=0.6, data=data)
    rows = rows_of(tmp_path)
    assert "both_right" not in rows["mine"]["figures"]
    assert "both_right" in rows["twins"]["figures"]


def test_the_figures_of_a_report_are_those_of_policies_and_not_of_yardsticks() -> None:
    rows = [
        {"policy": name, "axis": "Risk", "pole": None, "metric": "both_right", "value": value, "n": 10}
        for name, value in (("base", 0.0), ("pft", 0.75), ("bag-of-words probe", 1.0))
    ]
    assert figures_of_report({"rows": rows}) == {"both_right": {"base": 0.0, "pft": 0.75}}


def test_the_figures_of_a_report_of_two_data_sets_are_those_of_the_first() -> None:
    rows = [
        {"policy": "pft", "axis": axis, "part": part, "pole": None, "metric": "both_right", "value": value, "n": 10}
        for axis, part, value in (("Risk (plain)", "plain", 0.75), ("Risk (twins)", "twins", 0.25))
    ]
    assert figures_of_report({"rows": rows}) == {"both_right": 0.75}


def test_mlflows_copy_of_a_report_is_no_run(tmp_path: Path) -> None:
    run_dir = trained(tmp_path, "mine")
    report = evaluated(tmp_path, "report", run_dir / "model_ref.json", both_right=0.6)
    (tmp_path / "mlartifacts").mkdir()
    report.rename(tmp_path / "mlartifacts" / "copy")
    assert list(rows_of(tmp_path)) == ["mine"]


def test_a_run_is_shown_with_changed_keys_files_policy_and_commands(tmp_path: Path) -> None:
    run_dir = trained(tmp_path, "mine", "train.lr=0.25", "tracking.uri=https://me:secret@host/mlflow")
    shown = runs.show_run(str(run_dir / "model_ref.json"), tmp_path)
    assert shown["config"]["train.lr"] == 0.25
    assert shown["config"]["tracking.uri"] == "https://***@host/mlflow"
    assert "scaling.use_gpu" not in shown["config"]  # it has its default
    assert shown["files"]["metrics.jsonl"] == (run_dir / "metrics.jsonl").stat().st_size
    assert (shown["policy"]["answer"], shown["policy"]["axes"]) == ("option", ["Risk"])
    assert shown["next"]["chat"] == f"pft chat {run_dir}"
    assert "continue" not in shown["next"]
    cut = trained(tmp_path, "cut", error=RuntimeError("power cut"))
    assert runs.show_run("cut", tmp_path)["next"] == {"continue": f"pft train {cut}/config.yaml"}


def test_runs_are_compared_by_the_keys_that_differ_and_their_figures(tmp_path: Path, capfd) -> None:
    trained(tmp_path, "a", "train.lr=0.25")
    trained(tmp_path, "b", "train.lr=0.5", "lora=null", error=RuntimeError("power cut"))
    compared = runs.compare_runs(["a", "b"], tmp_path)
    assert compared["runs"] == ["a", "b"]
    assert compared["config"]["train.lr"] == [0.25, 0.5]
    assert compared["config"]["lora.r"][1] is None
    assert "train.pairs_per_step" not in compared["config"]
    assert compared["figures"]["pairs"] == [24, None]
    assert compared["figures"]["status"] == ["finished", "failed"]
    assert "train.lr" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda storage: runs.show_run("miner", storage), "miner: no such run here or in .*Did you mean 'mine'"),
        (lambda storage: runs.show_run(str(storage), storage), "not the folder of a run: it holds .*/mine"),
        (lambda storage: runs.compare_runs(["mine"], storage), "mine: give at least two runs"),
        (lambda storage: runs.list_runs(storage / "no"), "no: no such folder"),
    ],
)
def test_what_names_no_run_is_one_message(tmp_path: Path, call, words) -> None:
    trained(tmp_path, "mine")
    with pytest.raises(UserError, match=words):
        call(tmp_path)


def test_looking_at_runs_loads_no_library_of_workers(tmp_path: Path) -> None:
    for name in ("a", "b"):
        trained(tmp_path, name)
    code = (
        "import sys, pathlib\nfrom pipelines.runs import job\nstorage = pathlib.Path(sys.argv[1])\n"
        "job.list_runs(storage); job.show_run('a', storage); job.compare_runs(['a', 'b'], storage)\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "ray", "mlflow", "transformers", "pyarrow", "matplotlib"}


def test_three_hundred_runs_are_listed_in_a_moment(tmp_path: Path) -> None:
    first = trained(tmp_path, "run-000")
    lines = (first / "metrics.jsonl").read_text() * 400  # of a training of 1,200 steps
    for number in range(1, 300):
        folder = tmp_path / f"run-{number:03d}"
        folder.mkdir()
        for name in ("job.json", "config.yaml"):
            os.link(first / name, folder / name)
    (tmp_path / "run-299" / "metrics.jsonl").write_text(lines.replace('{"step": 4, "lo', ""))
    started = time.process_time()
    assert len(rows_of(tmp_path)) == 300
    assert time.process_time() - started < 2  # seconds of this process; 0.3 on a quiet machine
