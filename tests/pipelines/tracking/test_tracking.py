"""Each metric reaches MLflow exactly once, whatever dies in between, and the run never waits for it."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pft_core.data.manifest import DatasetManifest
from pft_core.data.preferences import Axis, Pole, PreferenceSpace
from pft_core.errors import UserError
from pipelines.config.run_config import RunConfig
from pipelines.tracking import origin as tracking_origin
from pipelines.tracking import tracker as tracking
from pipelines.tracking.mlflow_run import MlflowRun, flatten, mask_credentials, opening, sqlite_path, whole_steps
from pipelines.tracking.settings import TrackingSettings
from pipelines.tracking.tracker import Tracker, close_killed, cut_spool, read_metrics, tracking_uri

NO_SERVER = "http://user:hunter2@127.0.0.1:9"  # the discard port, where nothing listens
LONG = 120.0  # seconds; the first start creates the database, which is slow on a busy machine


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One storage folder for all tests here: creating MLflow's database takes seconds, and must print nothing."""
    folder = tmp_path_factory.mktemp("storage")
    first = {"run_name": "first", "run_key": "first", "run_dir": folder, "params": {}}
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        tracker = Tracker.start(uri=None, storage=folder, experiment="first", **first)
        tracker.finish("FINISHED", limit_s=LONG)
    assert printed.getvalue() == ""
    return folder


@pytest.fixture(autouse=True, scope="module")
def no_uri_from_outside() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture
def start(storage: Path, tmp_path: Path) -> Callable[..., Tracker]:
    """Start a tracker of the run in `tmp_path`, with the path as its key."""

    def start(**changes: Any) -> Tracker:
        given = {"uri": None, "storage": storage, "experiment": "tests", "run_name": "a run", "params": {}}
        return Tracker.start(**{**given, "run_key": tmp_path.name, "run_dir": tmp_path, **changes})

    return start


@pytest.fixture
def mlflow_runs(storage: Path, tmp_path: Path) -> Callable[[], list[Any]]:
    """Return all MLflow runs with this test's key, newest first."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")

    def find() -> list[Any]:
        experiment = client.get_experiment_by_name("tests")
        wanted = f"tags.run_key = '{tmp_path.name}'"
        return list(client.search_runs([experiment.experiment_id], wanted)) if experiment else []

    find.client = client  # type: ignore[attr-defined]
    return find


def points(find: Any, key: str) -> list[tuple[int, float]]:
    (run,) = find()
    return [(m.step, m.value) for m in find.client.get_metric_history(run.info.run_id, key)]


def manifest(folder: Path) -> Path:
    axis = Axis("Risk", Pole("Daring"), Pole("Careful"))
    counts: dict[str, Any] = {"rows_in": 9, "rows_out": 8, "pairs_out": 8, "rejected": 1}
    DatasetManifest(
        source="json",
        forms=("one",),
        space=PreferenceSpace("test", (axis,)),
        shards=(),
        rejected_by_reason={"missing key": 1},
        length_quantiles={},
        config_digest="c" * 16,
        data_digest="d" * 16,
        **counts,
    ).save(folder)
    return folder


def test_a_run_arrives_complete(start: Any, mlflow_runs: Any, tmp_path: Path) -> None:
    prepared, adapter = tmp_path / "prepared", tmp_path / "adapter"
    prepared.mkdir()
    adapter.mkdir()
    manifest(prepared)
    (adapter / "weights.txt").write_text("w")
    (tmp_path / "report.html").write_text("<p>")
    tracker = start(
        params={"train": {"lr": 1e-4}, "name": "x"},
        inputs=[(prepared, DatasetManifest.load(prepared))],
        tags={"kind": "train"},
    )
    tracker.log(1, {"loss": 2.0, "lr": 0.0})
    tracker.log(2, {"loss": 1.5, "lr": 1e-4})
    tracker.artifact(adapter)
    tracker.artifact(tmp_path / "report.html", "reports")
    tracker.finish("FINISHED", limit_s=LONG)

    (run,) = mlflow_runs()
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.lr": "0.0001", "name": "x"}
    assert run.data.tags["kind"] == "train"
    assert points(mlflow_runs, "loss") == [(1, 2.0), (2, 1.5)]
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("prepared", "d" * 16)
    stored = [f.path for f in mlflow_runs.client.list_artifacts(run.info.run_id)]
    assert sorted(stored) == ["adapter", "reports"]
    (weights,) = mlflow_runs.client.list_artifacts(run.info.run_id, "adapter")
    assert weights.path == "adapter/weights.txt"


def test_a_resumed_run_continues_the_same_mlflow_run_with_each_step_once(
    start: Any, mlflow_runs: Any, tmp_path: Path
) -> None:
    tracker = start(params={"workers": 2, "seed": 0})
    for step in range(1, 6):
        tracker.log(step, {"loss": 10.0 - step, "pairs_per_s": 100.0})
    tracker.finish("FAILED", limit_s=LONG)
    assert mlflow_runs()[0].info.status == "FAILED"

    tracker = start(params={"workers": 4, "seed": 0})
    for step in range(4, 8):  # the checkpoint has 3 steps, so 4 and 5 are repeated, at another speed
        tracker.log(step, {"loss": 10.0 - step, "pairs_per_s": 200.0})
    tracker.finish("FINISHED", limit_s=LONG)

    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["pairs_per_s"] for row in read_metrics(tmp_path)] == [100.0] * 3 + [200.0] * 4
    (run,) = mlflow_runs()
    assert run.info.status == "FINISHED"
    assert points(mlflow_runs, "loss") == [(step, 10.0 - step) for step in range(1, 8)]
    assert [step for step, _ in points(mlflow_runs, "pairs_per_s")] == [1, 2, 3, 4, 5, 6, 7]
    assert run.data.params == {"workers": "2", "seed": "0"}
    assert run.data.tags["changed.workers"] == "4"
    assert run.data.tags["resume_count"] == "1"
    assert "changed.seed" not in run.data.tags


def test_a_batch_sent_twice_counts_once(start: Any, mlflow_runs: Any) -> None:
    tracker = start()
    tracker.finish("FINISHED", limit_s=LONG)
    run = MlflowRun(tracker._spec)
    rows = [{"step": step, "loss": float(step)} for step in range(3)]
    run.send(rows)
    run.send(rows)  # as after a lost reply
    run.close("KILLED")
    assert points(mlflow_runs, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert mlflow_runs()[0].info.status == "KILLED"


def test_a_fresh_start_with_the_same_key_is_a_new_mlflow_run(start: Any, mlflow_runs: Any, tmp_path: Path) -> None:
    for folder in ("first", "again"):  # `--fresh` empties the run's folder
        (tmp_path / folder).mkdir()
        tracker = start(run_dir=tmp_path / folder)
        tracker.log(1, {"loss": 1.0})
        tracker.finish("FINISHED", limit_s=LONG)
    assert [run.data.metrics["loss"] for run in mlflow_runs()] == [1.0, 1.0]


def test_without_a_server_the_run_continues_and_the_next_start_delivers(
    start: Any, mlflow_runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking.console, "width", 1000)
    (tmp_path / "adapter").mkdir()
    tracker = start(uri=NO_SERVER)
    started = time.perf_counter()
    for step in range(100):
        tracker.log(step, {"loss": float(step)})
    tracker.artifact(tmp_path / "adapter")
    assert time.perf_counter() - started < 1.0  # time to write 100 lines to a file
    tracker.finish("FINISHED", limit_s=1.0)

    shown = capsys.readouterr()
    assert shown.out == ""
    assert "100 steps of metrics" in shown.err
    assert "1 artifacts" in shown.err
    assert "hunter2" not in shown.err

    start().finish("FINISHED", limit_s=LONG)
    assert points(mlflow_runs, "loss") == [(step, float(step)) for step in range(100)]


def test_a_server_that_is_down_is_not_waited_for_at_the_end(
    start: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking.console, "width", 1000)
    tracker = start(uri=NO_SERVER)
    tracker.log(0, {"loss": 1.0})
    deadline = time.monotonic() + LONG
    while not tracker._error and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "not reachable now" in capsys.readouterr().err  # reported when it happens
    started = time.monotonic()
    tracker.finish("FINISHED", limit_s=LONG)
    assert time.monotonic() - started < 10
    assert "not delivered: 1 steps" in capsys.readouterr().err


def test_a_local_file_is_reported_with_the_reason_after_several_failures(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []

    def locked(spec: Any) -> Any:
        tried.append(spec)
        tracker._given_up = len(tried) >= 4
        raise OSError("database is locked")

    monkeypatch.setattr(tracking, "MlflowRun", locked)
    monkeypatch.setattr(tracking, "DELIVER_EVERY_S", 0.05)
    monkeypatch.setattr(tracking, "LONGEST_PAUSE_S", 0.1)
    said: list[str] = []
    monkeypatch.setattr(tracking.console, "print", lambda text, **_: said.append(f"{len(tried)} {text}"))
    tracker = start()
    tracker._thread.join(LONG)
    assert len(said) == 1
    assert said[0].startswith("3 MLflow at sqlite:")
    assert "cannot be written now (OSError: database is locked); metrics are kept in " in said[0]


def test_a_server_that_comes_back_during_the_run_gets_everything(
    start: Any, mlflow_runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, send = threading.Event(), MlflowRun.send

    def fail_once(self: MlflowRun, rows: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise ConnectionError("gone")
        send(self, rows)

    monkeypatch.setattr(MlflowRun, "send", fail_once)
    monkeypatch.setattr(tracking, "DELIVER_EVERY_S", 0.1)
    tracker = start()
    tracker.log(1, {"loss": 1.0})
    assert failed.wait(LONG)
    tracker.log(2, {"loss": 0.5})
    tracker.finish("FINISHED", limit_s=LONG)
    assert points(mlflow_runs, "loss") == [(1, 1.0), (2, 0.5)]


def test_nothing_is_printed_and_no_thread_is_left(start: Any, capfd: pytest.CaptureFixture[str]) -> None:
    before = set(threading.enumerate())
    tracker = start()
    tracker.log(1, {"loss": 1.0})
    tracker.finish("FINISHED", limit_s=LONG)
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not left & {"tracker", "SystemMetricsMonitor"}


def test_system_metrics_are_recorded(start: Any, mlflow_runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    tracker = start()
    deadline = time.monotonic() + LONG
    while not (runs := mlflow_runs()) or not any(key.startswith("system/") for key in runs[0].data.metrics):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    tracker.log(0, {"loss": 1.0})  # system metrics have their own steps, which do not count as delivered
    tracker.finish("FINISHED", limit_s=LONG)
    assert points(mlflow_runs, "loss") == [(0, 1.0)]


def test_a_line_cut_by_a_kill_is_dropped(tmp_path: Path) -> None:
    spool = tmp_path / "metrics.jsonl"
    spool.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    cut_spool(spool)
    assert spool.read_text() == '{"step": 1, "loss": 2.0}\n'


def test_a_rewind_drops_only_later_rows(tmp_path: Path) -> None:
    spool = tmp_path / "metrics.jsonl"
    spool.write_text("".join(json.dumps({"step": step}) + "\n" for step in (2, 4, 6)))
    cut_spool(spool, after=5)
    assert [row["step"] for row in read_metrics(tmp_path)] == [2, 4]


def test_batches_contain_whole_steps() -> None:
    # 400 metrics per step and at most 1000 per batch: two steps, two steps, one
    rows = [{"step": step} | {f"m{i}": 0.0 for i in range(400)} for step in range(5)]
    assert [[row["step"] for row in batch] for batch in whole_steps(rows)] == [[0, 1], [2, 3], [4]]


def test_the_uri_comes_from_the_config_else_the_environment_else_the_storage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:5000")
    assert tracking_uri(None, tmp_path) == "http://there:5000"
    assert tracking_uri("postgresql+psycopg2://db/x", tmp_path) == "postgresql+psycopg2://db/x"


def test_a_storage_of_any_name_keeps_its_metrics_and_artifacts_inside(start, storage: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    made, storage = storage / "mlflow.db", tmp_path / "50% of %41, a?b #3 'e' & ~x" / "deep"
    storage.mkdir(parents=True)
    shutil.copy(made, storage)  # creating one takes seconds
    (tmp_path / "model.txt").write_text("weights")
    tracker = start(storage=storage, experiment="odd")
    tracker.log(1, {"loss": 0.5})
    tracker.artifact(tmp_path / "model.txt")
    tracker.finish("FINISHED", limit_s=LONG)
    assert {path.name for path in storage.iterdir()} == {"mlflow.db", ".mlflow.db.lock", "mlartifacts"}
    assert [path.read_text() for path in storage.rglob("model.txt")] == ["weights"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [storage.parent.name]
    uri = tracking_uri(None, storage)
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("odd").experiment_id])
    assert run.data.metrics == {"loss": 0.5}
    assert [found.path for found in client.list_artifacts(run.info.run_id)] == ["model.txt"]
    assert sqlite_path(uri) == storage / "mlflow.db"


def test_a_tilde_in_the_uri_of_a_file_is_expanded() -> None:
    assert tracking_uri("sqlite:///~/here.db", Path("runs")) == f"sqlite:///{Path.home()}/here.db"


def test_a_uri_that_is_not_a_store_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracking.uri=ftp://\*\*\*@host: not an MLflow tracking store"):
        tracking_uri("ftp://me:hunter2@host", tmp_path)


def test_params_are_flat_short_and_without_credentials() -> None:
    config = {"a": {"b": [1, 2], "c": None}, "uri": "http://me:hunter2@host/x", "empty": {}, "long": "x" * 7000}
    flat = flatten(config)
    assert flat == {"a.b": "[1, 2]", "a.c": "null", "uri": "http://***@host/x", "empty": "{}", "long": "x" * 6000}


def test_every_uri_in_a_text_is_masked() -> None:
    text = "http://a:b@host failed, then postgresql://c@db/x; mail me@host"
    assert mask_credentials(text) == "http://***@host failed, then postgresql://***@db/x; mail me@host"


def test_processes_that_open_a_new_store_at_once_all_deliver(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from pipelines.tracking import Tracker
storage, name = Path(sys.argv[1]), sys.argv[2]
(storage / name).mkdir()
tracker = Tracker.start(
    uri=None, storage=storage, experiment="e", run_name=name, run_key=name, run_dir=storage / name, params={"a": 1}
)
tracker.log(1, {"x": 1.0})
tracker.finish("FINISHED", limit_s=120)  # three first starts at once, on a machine that may be busy
"""
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], stderr=subprocess.PIPE, text=True)
        for name in ("one", "two", "three")
    ]
    errors = [process.communicate()[1] for process in started]
    assert not any("not delivered" in error or "Traceback" in error for error in errors), errors
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert sorted(run.info.run_name for run in runs) == ["one", "three", "two"]
    assert all(run.data.metrics["x"] == 1.0 for run in runs)


def test_a_trial_is_nested_below_its_search_as_soon_as_that_exists(start, mlflow_runs, tmp_path) -> None:
    folders = {name: tmp_path / name for name in ("part", "whole")}
    for folder in folders.values():
        folder.mkdir()
    part = start(run_key=tmp_path.name, run_dir=folders["part"], parent=f"{tmp_path.name}-whole")
    part.log(0, {"loss": 1.0})  # waits in the spool, since its search does not exist yet
    whole = start(run_key=f"{tmp_path.name}-whole", run_dir=folders["whole"])
    whole.finish("FINISHED", limit_s=LONG)
    part.finish("FINISHED", limit_s=LONG)
    (run,) = mlflow_runs()
    parent = mlflow_runs.client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["run_key"] == f"{tmp_path.name}-whole"
    assert points(mlflow_runs, "loss") == [(0, 1.0)]


def test_the_run_of_a_killed_process_is_closed_and_a_finished_one_is_unchanged(start, mlflow_runs, storage) -> None:
    config = RunConfig(storage=str(storage), tracking=TrackingSettings(experiment="tests"))
    start().finish("FINISHED", limit_s=LONG)
    (run,) = mlflow_runs()
    close_killed(config, run.data.tags["run_key"])
    assert mlflow_runs()[0].info.status == "FINISHED"
    mlflow_runs.client.update_run(run.info.run_id, status="RUNNING")
    close_killed(config, run.data.tags["run_key"])
    assert mlflow_runs()[0].info.status == "KILLED"
    close_killed(config, "a key that no run has")


def test_a_run_has_tags_for_commit_user_and_source_and_the_use_of_its_data(
    start: Any, mlflow_runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/pft", "train", "quickstart", "tracking.uri=http://me:hunter2@host"])
    monkeypatch.setenv("LOGNAME", "ada")
    inputs = []
    for name in ("pairs", "held-out"):
        (tmp_path / name).mkdir()
        inputs.append((manifest(tmp_path / name), DatasetManifest.load(tmp_path / name)))
    start(inputs=inputs).finish("FINISHED", limit_s=LONG)

    (run,) = mlflow_runs()
    tags = run.data.tags
    assert (tags["mlflow.user"], tags["mlflow.source.type"]) == ("ada", "LOCAL")
    assert tags["mlflow.source.name"] == "pft train quickstart tracking.uri=http://***@host"
    assert tags.get("mlflow.source.git.commit") == tracking_origin.commit()
    contexts = {entry.dataset.name: [(tag.key, tag.value) for tag in entry.tags] for entry in run.inputs.dataset_inputs}
    assert contexts == {
        "pairs": [("mlflow.data.context", "train")],
        "held-out": [("mlflow.data.context", "validation")],
    }


@pytest.mark.parametrize("is_new", [True, False])
def test_a_store_half_created_on_a_full_disk_is_removed(is_new: bool, tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"
    if not is_new:
        store.write_text("of earlier runs")

    def make_tables() -> None:
        with opening(f"sqlite:///{store}"):
            store.write_text("half of its tables")
            raise RuntimeError("database or disk is full")

    with pytest.raises(RuntimeError):
        make_tables()
    assert store.exists() != is_new


def test_a_new_store_without_the_parent_run_is_kept(tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"
    with contextlib.suppress(LookupError), opening(f"sqlite:///{store}"):
        store.write_text("tables")
        raise LookupError("the parent is not there yet")
    assert store.exists()
