"""A run key stands for one run: reused if finished, continued if not, deleted only if it is a run."""

import errno
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pft_core.data.manifest import DatasetManifest
from pft_core.data.preferences import load_space
from pft_core.errors import UserError
from pft_core.files import read_json, whole_file
from pft_core.policies.shipped_base import SHIPPED_BASE
from pipelines.config import RunConfig, load_config
from pipelines.config.recipes import RECIPES
from pipelines.jobs import locked
from pipelines.jobs import runner as jobs
from pipelines.jobs.cluster import ensure_ray, refuse_silent_address, refuse_unusable_environment
from pipelines.jobs.runner import data_digests, finished_result, run_job, run_key
from pipelines.jobs.user_errors import unwrap_user_error


def config(storage: Path, *overrides: str) -> RunConfig:
    return load_config("quickstart", ["data=null", f"storage={storage}", "name=r", *overrides])


class Work:
    """Counts its calls; fails with `error` while it is set."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.calls, self.error = 0, error

    def __call__(self, run_dir: Path, key: str) -> dict[str, Any]:
        self.calls += 1
        (run_dir / "progress").touch()
        if self.error:
            raise self.error
        return {"run_dir": str(run_dir), "calls": self.calls}


def key_of(config: RunConfig, kind: str = "train") -> str:
    return run_key(config, kind=kind, data=data_digests(config))


def test_a_finished_run_is_reused_and_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work = Work()
    first = run_job(config(tmp_path), work, fresh=False, kind="train")
    second = run_job(config(tmp_path), work, fresh=False, kind="train")
    assert first == second == {"run_dir": str(tmp_path / f"r-{key_of(config(tmp_path))[:8]}"), "calls": 1}
    assert "is already finished" in capfd.readouterr().err.replace("\n", " ")


def test_a_runs_log_holds_its_messages_with_the_time(tmp_path: Path) -> None:
    def work(run_dir: Path, key: str) -> dict[str, Any]:
        jobs.console.print("activation checkpointing off", style="yellow")
        return {"run_dir": str(run_dir)}

    run_dir = Path(run_job(config(tmp_path), work, fresh=False, kind="train")["run_dir"])
    jobs.console.print("of no run")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\S+ activation checkpointing off\n", (run_dir / "run.log").read_text())


def test_a_runs_config_is_a_recipe_even_if_its_plugins_were_deleted(tmp_path: Path) -> None:
    uploads = [tmp_path / name / "own.py" for name in ("upload", "another")]
    for upload in uploads:
        upload.parent.mkdir()
        upload.write_text(f"# of {upload.parent.name}\n")
    asked = config(tmp_path / "runs", f"plugins=[{', '.join(map(str, uploads))}, tests.builders]")
    run_dir = Path(run_job(asked, Work(), fresh=False, kind="train")["run_dir"])
    for upload in uploads:
        shutil.rmtree(upload.parent)
    moved = run_dir.rename(tmp_path / "moved")
    again = load_config(str(moved / "config.yaml"))
    assert [Path(place).read_text() for place in again.plugins[:2]] == ["# of upload\n", "# of another\n"]
    assert again.plugins[2] == "tests.builders"


GIVEN = ["name=1e3", "train.alpha=2", "scaling.resources_per_worker={CPU: 1}", "lora.target_modules=[q, 1e4]"]


@pytest.mark.parametrize("recipe", [path.stem for path in RECIPES.glob("*.yaml")])
@pytest.mark.parametrize("given", [[], GIVEN])
def test_a_runs_config_is_the_recipe_of_that_run(recipe, given, tmp_path, monkeypatch) -> None:
    places = ["data=null", "validation_data=null", "model=toyworld", f"storage={tmp_path / 'runs'}"]
    use_gpu = [] if not given else ["scaling.use_gpu=false"]
    work = Work()
    first = run_job(load_config(recipe, [*places, *use_gpu, *given]), work, fresh=False, kind="train")
    moved = (tmp_path / "runs").rename(tmp_path / "moved") / Path(first["run_dir"]).name
    monkeypatch.chdir(moved)
    for own in (moved / "config.yaml", Path("config.yaml"), Path("..", moved.name, "config.yaml")):
        again = run_job(load_config(own), work, fresh=False, kind="train")
        assert Path(again["run_dir"]).resolve() == moved
    assert work.calls == 1
    assert run_job(load_config(moved / "config.yaml", ["seed=5"]), work, fresh=False, kind="train")["calls"] == 2


def test_the_config_of_a_run_in_a_folder_without_key_is_its_recipe_too(tmp_path: Path) -> None:
    work = Work()
    run_job(config(tmp_path, "name=pft"), work, fresh=False, kind="train", run_dir=tmp_path / "q" / "pft")
    again = run_job(load_config(tmp_path / "q" / "pft" / "config.yaml"), work, fresh=False, kind="train")
    assert again == {"run_dir": str(tmp_path / "q" / "pft"), "calls": 1}


def test_an_unfinished_run_continues_in_the_same_folder(tmp_path: Path) -> None:
    work = Work(RuntimeError("power cut"))
    with pytest.raises(RuntimeError):
        run_job(config(tmp_path), work, fresh=False, kind="train")
    (run_dir,) = tmp_path.glob("r-*")
    assert read_json(run_dir / "job.json", what="job")["status"] == "failed"
    work.error = None
    assert run_job(config(tmp_path), work, fresh=False, kind="train") == {"run_dir": str(run_dir), "calls": 2}
    job = read_json(run_dir / "job.json", what="job")
    assert (job["status"], job["attempt"]) == ("finished", 2)


def test_a_run_killed_before_its_state_was_written_is_started(tmp_path: Path) -> None:
    run_dir = tmp_path / f"r-{key_of(config(tmp_path))[:8]}"
    for fresh in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            patch.setattr(jobs, "write_json", killed_before_the_end)
            with pytest.raises(KeyboardInterrupt):
                run_job(config(tmp_path), Work(), fresh=fresh, kind="train")
        assert [path.name[:10] for path in run_dir.iterdir()] == [".job.json."]
        assert run_job(config(tmp_path), Work(), fresh=fresh, kind="train")["calls"] == 1


def killed_before_the_end(path: Path, _: Any) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text("half of a fi")
        raise KeyboardInterrupt


def test_fresh_deletes_the_run_and_starts_over(tmp_path: Path) -> None:
    work = Work()
    run_dir = Path(run_job(config(tmp_path), work, fresh=False, kind="train")["run_dir"])
    (run_dir / "old").touch()
    assert run_job(config(tmp_path), work, fresh=True, kind="train")["calls"] == 2
    assert not (run_dir / "old").exists()


def test_fresh_never_deletes_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1").touch()
    for fresh, part in ((True, "--fresh does not delete it"), (False, "it is not a run")):
        with pytest.raises(UserError, match=part):
            run_job(config(tmp_path), Work(), fresh=fresh, kind="train", run_dir=precious)
    assert (precious / "chapter1").exists()


def test_another_config_does_not_replace_a_fixed_folder_without_fresh(tmp_path: Path) -> None:
    run_job(config(tmp_path), Work(), fresh=False, kind="quickstart", run_dir=tmp_path / "quickstart")
    other = config(tmp_path, "seed=1")
    with pytest.raises(UserError, match="another config, data or code: replace it with --fresh"):
        run_job(other, Work(), fresh=False, kind="quickstart", run_dir=tmp_path / "quickstart")


@pytest.mark.parametrize(("metrics", "runs_left"), [("", 0), ('{"step": 1}\n', 1)])
def test_a_user_error_leaves_nothing_unless_a_step_was_done(tmp_path: Path, metrics: str, runs_left: int) -> None:
    def refuse(run_dir: Path, key: str) -> dict[str, Any]:
        (run_dir / "metrics.jsonl").write_text(metrics)
        raise UserError("target modules match nothing")

    with pytest.raises(UserError):
        run_job(config(tmp_path), refuse, fresh=False, kind="train")
    assert len(list(tmp_path.glob("r-*"))) == runs_left


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    script = "import sys; from pathlib import Path; from pipelines.jobs import locked\n"
    script += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(run_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"another process .pid {holder.pid} on .*is writing this folder"):
        run_job(config(tmp_path), Work(), fresh=True, kind="train", run_dir=run_dir)
    holder.communicate("")
    assert run_job(config(tmp_path), Work(), fresh=False, kind="train", run_dir=run_dir)["calls"] == 1


def test_the_key_depends_on_config_and_code_but_not_on_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = key_of(config(tmp_path), "train")
    assert key == key_of(config(tmp_path / "elsewhere", "tracking.experiment=other"), "train")
    assert key != key_of(config(tmp_path, "train.lr=2e-3"), "train")
    assert key != key_of(config(tmp_path), "quickstart")
    monkeypatch.setattr(jobs, "code_digest", lambda: "another version")
    assert key != key_of(config(tmp_path), "train")


def test_the_key_depends_on_the_data_and_not_on_its_folder(tmp_path: Path) -> None:
    manifest = DatasetManifest("vcd", ("one",), load_space("vcd"), (), 1, 1, 1, 0, {}, {}, "c", "digest-1")
    for name, content in (("a", manifest), ("moved", manifest), ("changed", replace(manifest, data_digest="digest-2"))):
        (tmp_path / name).mkdir()
        content.save(tmp_path / name)
    keys = {name: key_of(config(tmp_path, f"data={tmp_path / name}"), "t") for name in ("a", "moved", "changed")}
    assert keys["a"] == keys["moved"] != keys["changed"]


def test_a_missing_data_set_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json: no such file"):
        run_job(config(tmp_path, f"data={tmp_path / 'nothing'}"), Work(), fresh=False, kind="train")


def test_a_damaged_job_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "job.json").write_text("{")
    with pytest.raises(UserError, match=r"job\.json: not valid JSON"):
        run_job(config(tmp_path), Work(), fresh=False, kind="train", run_dir=tmp_path / "r")


def test_a_user_error_is_found_inside_its_wrappers() -> None:
    mistake = UserError("train.lr=1: too high")
    chained = RuntimeError("worker died")
    chained.__cause__ = KeyError("x")
    chained.__cause__.__context__ = mistake
    assert unwrap_user_error(chained) is mistake
    worker_group = RuntimeError("training failed")
    worker_group.worker_failures = {0: KeyError("a"), 1: mistake}  # type: ignore[attr-defined]
    assert unwrap_user_error(worker_group) is mistake
    assert unwrap_user_error(ValueError("ours")) is None
    circle = RuntimeError("a")
    circle.__context__ = KeyError("b")
    circle.__context__.__context__ = circle
    assert unwrap_user_error(circle) is None


def test_a_user_error_in_a_traceback_text_keeps_only_its_message() -> None:
    text = "ray::Map(f)()\n  File ...\npft_core.errors.UserError: a.json:3: no pole\nadd one\n\nThe above exception was"
    assert str(unwrap_user_error(RuntimeError(text))) == "a.json:3: no pole\nadd one"


def test_a_full_disk_is_a_user_error() -> None:
    full = RuntimeError("save failed")
    full.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/adapter")
    assert str(unwrap_user_error(full)) == (
        "/runs/adapter: No space left on device: free some space there, or choose another folder"
    )
    assert "no space left" in str(unwrap_user_error(RuntimeError("IoError: No space left on device (os error 28)")))


def test_a_dead_address_is_reported_at_once() -> None:
    with pytest.raises(UserError, match=r"RAY_ADDRESS=127\.0\.0\.1:1: no Ray cluster answers"):
        refuse_silent_address("127.0.0.1:1")


@pytest.mark.ray
def test_a_user_error_in_a_ray_task_keeps_its_message(ray_cluster: None) -> None:
    import ray

    @ray.remote
    def fail() -> None:
        raise UserError("row 3: no pole")

    with pytest.raises(Exception, match="row 3") as raised:
        ray.get(fail.remote())
    assert str(unwrap_user_error(raised.value)) == "row 3: no pole"


def test_an_interrupted_run_is_marked_and_can_continue(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_job(config(tmp_path), Work(KeyboardInterrupt()), fresh=False, kind="train")
    (run_dir,) = tmp_path.glob("r-*")
    assert read_json(run_dir / "job.json", what="job")["status"] == "interrupted"
    assert run_job(config(tmp_path), Work(), fresh=False, kind="train")["run_dir"] == str(run_dir)


ADDRESSES = [
    "garbage",
    ":6379",
    "host:",
    "a b:1",
    "http://127.0.0.1:8265",
    "127.0.0.1:99999",
    "1:2:3",
    "ray://x",
    "x\ny:1",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_invalid_address_is_refused_before_ray_starts(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(UserError, match="not the address of a Ray cluster: give HOST:PORT"):
        ensure_ray()


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_too_long_for_rays_sockets_is_refused(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, f"/tmp/{'x' * 95}")
    with pytest.raises(
        UserError, match=rf"^{variable}=/tmp/x+: the path has 100 bytes, .* at most \d+: set RAY_TMPDIR to"
    ):
        refuse_unusable_environment()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    refuse_unusable_environment()


def test_empty_folders_created_for_a_lock_are_removed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a" / "b" / "run"):
        raise ZeroDivisionError
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "a" / "b" / "run"):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_a_loop_of_links_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for use in (lambda path: path.resolve(), lambda path: path.open(), lambda path: (path / "x").mkdir()):
        with pytest.raises((OSError, RuntimeError)) as raised:
            use(tmp_path / "loop")
        assert "check the path" in str(unwrap_user_error(raised.value))


def a_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def test_the_key_does_not_depend_on_the_models_folder_and_a_result_moves_with_its_run(tmp_path: Path) -> None:
    here = config(tmp_path / "a", f"model={a_model(tmp_path / 'one' / 'm')}")
    there = config(tmp_path / "b", f"model={a_model(tmp_path / 'two' / 'n')}")
    assert key_of(here) == key_of(there)
    assert key_of(config(tmp_path, "model=toyworld")) == key_of(config(tmp_path, f"model={SHIPPED_BASE}"))
    run_job(here, Work(), fresh=False, kind="train")
    shutil.move(tmp_path / "a", tmp_path / "b")
    result = run_job(there, Work(), fresh=False, kind="train")
    assert Path(result["run_dir"]).parent == tmp_path / "b"
    assert finished_result(there, kind="train") == result
