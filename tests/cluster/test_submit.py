"""A verb runs as a Ray job once, is followed to its end, and returns its result."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray.job_submission import JobStatus

from cluster import submit, upload
from pft_core.errors import UserError
from pipelines.cli import job_verbs

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ["show", "config", "quickstart"]
VERBS = job_verbs()


def sent_as(command: list[str]) -> list[str]:
    return submit.for_the_cluster(command, VERBS[command[0]])


class FakeClient:
    """Stands in for Ray's client, and records the submissions."""

    def __init__(self, **known: str) -> None:
        self.known = {name.replace("_", "-"): status for name, status in known.items()}
        self.submitted: list[str] = []
        self.refusal = ""

    def list_jobs(self) -> list[Any]:
        return [SimpleNamespace(submission_id=name, status=status) for name, status in self.known.items()]

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any]) -> None:
        if self.refusal:
            raise RuntimeError(self.refusal)
        self.submitted.append(submission_id)


@pytest.fixture
def job_id(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(submit, "job_name", lambda command: "pft-job")
    return "pft-job"


@pytest.mark.parametrize(
    ("known", "expected", "is_new"),
    [
        ({}, "pft-job", True),
        ({"pft_job": "RUNNING"}, "pft-job", False),
        ({"pft_job": "SUCCEEDED"}, "pft-job", False),
        ({"pft_job": "FAILED"}, "pft-job-2", True),
        ({"pft_job": "STOPPED", "pft_job_2": "PENDING"}, "pft-job-2", False),
    ],
)
def test_a_job_starts_only_if_none_is_running_or_has_succeeded(
    job_id: str, known: dict[str, str], expected: str, is_new: bool
) -> None:
    client: Any = FakeClient(**known)
    assert submit.submit_once(client, COMMAND) == expected
    assert client.submitted == ([expected] if is_new else [])


def test_fresh_starts_again_after_a_success_but_not_beside_a_running_job(job_id: str) -> None:
    client: Any = FakeClient(pft_job="SUCCEEDED")
    assert submit.submit_once(client, ["train", "quickstart", "--fresh"]) == "pft-job-2"
    client = FakeClient(pft_job="RUNNING")
    assert submit.submit_once(client, ["train", "quickstart", "--fresh"]) == "pft-job"


def test_losing_a_race_follows_the_winner(job_id: str) -> None:
    client: Any = FakeClient()
    client.refusal = "Job with submission_id pft-job already exists."
    assert submit.submit_once(client, COMMAND) == "pft-job"
    client.refusal = "disk full"
    with pytest.raises(UserError, match="refused the job: disk full"):
        submit.submit_once(client, COMMAND)


def test_a_cluster_whose_agent_is_late_is_waited_for(job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client: Any = FakeClient()
    client.refusal = "Request failed with status code 500: No available agent to submit job"
    monkeypatch.setattr(submit.time, "sleep", lambda seconds: setattr(client, "refusal", ""))
    assert submit.submit_once(client, COMMAND) == "pft-job"
    assert client.submitted == ["pft-job"]


def test_another_recipe_or_data_set_under_the_same_path_is_another_job(tmp_path: Path) -> None:
    command = ["train", "quickstart", f"data={tmp_path}"]
    names = set()
    for content in ("1", "2"):
        (tmp_path / "manifest.json").write_text(content)
        names.add(submit.job_name(command))
    assert len(names) == 2


def test_the_id_names_verb_and_recipe_and_depends_on_the_whole_command() -> None:
    name = submit.job_name(["train", "pipelines/recipes/quickstart.yaml", "train.lr=1e-4"])
    assert name.startswith("pft-train-quickstart-")
    assert name != submit.job_name(["train", "pipelines/recipes/quickstart.yaml", "train.lr=2e-4"])


def test_paths_are_sent_as_the_cluster_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vcd").mkdir()
    sent = sent_as(["train", "quickstart", "data=vcd", "model=org/name", "train.lr=1e-4"])
    assert sent == [
        "train",
        "quickstart",
        f"storage={tmp_path}/runs",
        f"data={tmp_path}/vcd",
        "model=org/name",
        "train.lr=1e-4",
    ]
    sent = sent_as(["prepare", "--source", "vcd", "--input", "vcd", "--output", "out"])
    assert sent == ["prepare", "--source", "vcd", "--input", f"{tmp_path}/vcd", "--output", f"{tmp_path}/out"]
    recipe = ROOT / "pipelines" / "recipes" / "quickstart.yaml"
    assert sent_as(["show", "config", os.path.relpath(recipe)])[2] == "pipelines/recipes/quickstart.yaml"


def test_a_recipe_outside_the_checkout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(UserError, match="copy it there"):
        sent_as(["train", str(tmp_path / "mine.yaml")])


@pytest.fixture
def in_checkout() -> Iterator[Path]:
    """A folder inside the checkout for the user's own files."""
    folder = ROOT / "own-submit-test"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def test_a_recipe_or_plugin_excluded_by_an_ignore_file_is_refused(in_checkout: Path) -> None:
    (in_checkout / "mine.yaml").write_text("name: mine\nplugins: [own.py]\n")
    (in_checkout / "own.py").write_text("VALUE = 1\n")
    for ignored, by in (("mine.yaml", ".gitignore"), ("own.py", ".rayignore"), ("*", ".gitignore")):
        (in_checkout / by).write_text(f"{ignored}\n")
        with pytest.raises(UserError, match="ignore excludes it from the upload"):
            sent_as(["train", str(in_checkout / "mine.yaml")])
        (in_checkout / by).unlink()
    sent_as(["train", str(in_checkout / "mine.yaml")])


def test_every_verb_except_local_ones_runs_as_a_job() -> None:
    assert {"prepare", "train", "evaluate", "quickstart", "compare", "tune", "serve", "show", "export"} == set(VERBS)
    assert sent_as(["tune", "quickstart", "--mode", "soup"])[:3] == ["tune", "quickstart", f"storage={Path.cwd()}/runs"]
    assert sent_as(["compare", "budget"]) == ["compare", "budget", "--storage", f"{Path.cwd()}/runs"]


def test_plugins_are_uploaded_with_the_job(in_checkout: Path) -> None:
    (in_checkout / "own.py").write_text("VALUE = 1\n")
    (in_checkout / "mine.yaml").write_text("name: mine\nplugins: [own.py]\n")
    relative = f"{in_checkout.name}/own.py"
    command = ["evaluate", "--data", "org/data", "--output", "out", "--plugin", str(in_checkout / "own.py")]
    assert sent_as(command)[-1] == relative
    recipe = str(in_checkout / "mine.yaml")
    added = submit.plugin_arguments(["train", recipe], VERBS["train"], [str(in_checkout / "own.py"), "package.module"])
    assert sent_as(["train", recipe, *added])[-1] == f'plugins=["{relative}", "{relative}", "package.module"]'
    before = submit.job_name(["train", f"{in_checkout.name}/mine.yaml"])
    (in_checkout / "own.py").write_text("VALUE = 2\n")
    assert submit.job_name(["train", f"{in_checkout.name}/mine.yaml"]) != before


def test_a_plugin_that_cannot_be_uploaded_is_refused(tmp_path: Path, in_checkout: Path) -> None:
    (tmp_path / "own.py").write_text("")
    with pytest.raises(UserError, match=r"own\.py: is not inside .* copy it there"):
        sent_as(["prepare", "--source", "vcd", "--output", "out", "--plugin", str(tmp_path / "own.py")])
    (in_checkout / "mine.yaml").write_text(f"plugins: [{tmp_path / 'own.py'}]\n")
    with pytest.raises(UserError, match=r"own\.py: is not inside"):
        sent_as(["train", str(in_checkout / "mine.yaml")])
    with pytest.raises(UserError, match="serve takes no plugins"):
        submit.plugin_arguments(["serve", "quickstart"], VERBS["serve"], ["own.py"])


def test_an_installed_package_uploads_itself_and_the_files_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "is_checkout", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("plugins: [own.py]\n")
    (tmp_path / "recipes" / "own.py").write_text("")
    command = sent_as(["train", "recipes/mine.yaml"])
    with upload.runtime_env(command) as env:
        folder = Path(env["working_dir"])
        assert (folder / "pipelines" / "cli.py").is_file()
        assert (folder / "recipes" / "own.py").is_file()
        assert (folder / "recipes" / "mine.yaml").is_file()
        others = {path.name for path in folder.iterdir()} - {"pft_core", "pipelines", "cluster", "recipes"}
        assert not others
    assert not folder.exists()


def test_an_override_is_not_a_path_wherever_options_stand(in_checkout: Path) -> None:
    stored = ["--storage", f"{Path.cwd()}/runs"]
    seeds = "sizes.tiny.seeds=[0]"
    assert sent_as(["compare", "table2_vcd", seeds]) == ["compare", "table2_vcd", seeds, *stored]
    own = in_checkout / "own.py"
    own.write_text("")
    plugged = ["--plugin", f"{in_checkout.name}/own.py"]
    assert sent_as(["compare", "table2_vcd", "--plugin", str(own), seeds])[2:] == [seeds, *plugged, *stored]


def test_an_option_before_the_name_takes_its_own_value_and_no_more(tmp_path: Path) -> None:
    size = ["--size", "tiny"]
    assert sent_as(["compare", *size, "table2_vcd"])[:4] == ["compare", "table2_vcd", *size]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("")
    with pytest.raises(UserError, match="copy it there"):
        sent_as(["train", "--fresh", str(recipe)])
    with pytest.raises(UserError, match="copy it there"):
        sent_as(["compare", "--size", "tiny", str(recipe)])
    assert sent_as(["train", "--fresh", "quickstart"])[::3] == ["train", "--fresh"]


def test_an_option_with_an_equals_sign_is_the_option_with_its_value(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("")
    with pytest.raises(UserError, match=r"own\.py: is not inside"):
        sent_as(["prepare", "--source", "vcd", "--output", "o", f"--plugin={tmp_path}/own.py"])
    sent = sent_as(["prepare", "--source=vcd", "--output=o", "--input=a", "--input", "b"])
    assert sent == sent_as(["prepare", "--source", "vcd", "--output", "o", "--input", "a", "--input", "b"])
    assert sent[3:5] == ["--output", f"{Path.cwd()}/o"]
    assert sent_as(["compare", "budget", "--storage=s"]) == ["compare", "budget", "--storage", f"{Path.cwd()}/s"]


def test_a_negated_option_stays_negated() -> None:
    words = ["evaluate", "--data", "d", "--output", "o", "--model", "m"]
    for flag in ("--use-gpu", "--no-use-gpu"):
        assert sent_as([*words, flag, "--limit-per-axis", "5"])[-3:] == [flag, "--limit-per-axis", "5"]


def test_words_after_two_dashes_stay_arguments() -> None:
    assert sent_as(["train", "--", "quickstart", "-x=1"])[1:] == [
        "--",
        "quickstart",
        f"storage={Path.cwd()}/runs",
        "-x=1",
    ]


def test_a_recipe_with_any_suffix_is_uploaded_or_refused(tmp_path: Path, in_checkout: Path) -> None:
    for folder in (tmp_path, in_checkout):
        (folder / "recipe").write_text("name: mine\n")
    with pytest.raises(UserError, match="copy it there"):
        sent_as(["train", str(tmp_path / "recipe")])
    assert sent_as(["train", str(in_checkout / "recipe")])[1] == f"{in_checkout.name}/recipe"


def test_a_recipe_of_show_is_found_after_its_options(in_checkout: Path) -> None:
    (in_checkout / "mine.yaml").write_text("")
    sent = sent_as(["show", "config", "--", str(in_checkout / "mine.yaml"), "train.lr=1e-4"])
    assert sent == ["show", "config", f"{in_checkout.name}/mine.yaml", "train.lr=1e-4"]
    with pytest.raises(UserError, match=r"show confg: expected show config or serve or prompt\. Did you mean 'config'"):
        sent_as(["show", "confg", "quickstart"])
    with pytest.raises(UserError, match="submit: show: expected show config or serve"):
        sent_as(["show"])


def test_an_option_that_a_verb_does_not_have_is_named_before_anything_is_sent() -> None:
    with pytest.raises(UserError, match=r"submit: train: No such option: --frsh"):
        sent_as(["train", "quickstart", "--frsh"])
    with pytest.raises(UserError, match=r"submit: compare: Option '--size' requires an argument"):
        sent_as(["compare", "budget", "--size"])


def test_a_recipes_own_storage_is_absolute_too(in_checkout: Path) -> None:
    (in_checkout / "mine.yaml").write_text("storage: kept\n")
    sent = sent_as(["train", str(in_checkout / "mine.yaml"), "storage=s"])
    assert sent[2:] == [f"storage={Path.cwd()}/kept", f"storage={Path.cwd()}/s"]
    (in_checkout / "mine.yaml").write_bytes(b"\xff: 1\n")
    assert sent_as(["train", str(in_checkout / "mine.yaml")])[2:] == [f"storage={Path.cwd()}/runs"]


def test_relative_paths_inside_lists_and_sections_are_absolute_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a b" / "train").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    sent = sent_as(["train", "quickstart", "x={one: a b, two: [./c, ~, 007], c: no}", "y=['c', \"a b/train\", d]"])
    assert sent[3:] == [
        f'x={{one: "{tmp_path}/a b", two: ["{tmp_path}/c", "{tmp_path}/home", 007], c: no}}',
        f'y=["{tmp_path}/c", "{tmp_path}/a b/train", d]',
    ]
    assert sent_as(["train", "quickstart", "y=[c, }", "z='c'", "storage='~/r'"])[3:] == [
        "y=[c, }",
        f"z={tmp_path}/c",
        f"storage={tmp_path}/home/r",
    ]


def test_inputs_of_a_recipe_are_looked_up_in_the_current_folder_and_not_in_the_upload(
    in_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(in_checkout)
    (in_checkout / "models").mkdir()
    (in_checkout / "mine.yaml").write_text("model: models\ndata: not/here\nvalidation_data: 3\n")
    sent = sent_as(["train", "mine.yaml", "train.lr=1e-4"])
    assert sent[2:] == [f"storage={in_checkout}/runs", f"model={in_checkout}/models", "train.lr=1e-4"]


def test_a_lost_cluster_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    class LostClusterClient(FakeClient):
        def get_job_status(self, submission_id: str) -> Any:
            raise ConnectionError("Failed to connect to Ray\nat http://head")

    client: Any = LostClusterClient()
    monkeypatch.setattr(submit, "CLUSTER_SILENT_S", 0.1)
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.05)
    with pytest.raises(UserError, match=r"pft-job: the cluster no longer answers \(Failed to connect to Ray\): start"):
        submit.follow(client, "pft-job")


def test_following_survives_a_short_silence_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    class RecoveringClient(FakeClient):
        calls = 0

        def get_job_status(self, submission_id: str) -> Any:
            self.calls += 1
            if self.calls == 1:
                raise RuntimeError("Request failed with status code 500")
            return JobStatus.SUCCEEDED

        def get_job_logs(self, submission_id: str) -> str:
            return "done"

    client: Any = RecoveringClient()
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.05)
    assert submit.follow(client, "pft-job") == JobStatus.SUCCEEDED


def test_a_long_or_empty_override_is_sent_unchanged() -> None:
    long = f"title={'x' * 5000}"
    assert sent_as(["train", "quickstart", long, "model="])[3:] == [long, "model="]
    assert submit.job_name(["train", "quickstart", long])


@pytest.mark.parametrize("value", ["own.py", "[1", "[1]", "", "{a: b}"])
def test_plugins_of_an_override_are_a_list_of_names(value: str) -> None:
    with pytest.raises(UserError, match=r"'plugins=.*': expected a list of .* such as 'plugins=\[own\.py\]'"):
        sent_as(["train", "quickstart", f"plugins={value}"])
    with pytest.raises(UserError, match="expected a list"):
        submit.plugin_arguments(["train", "quickstart", f"plugins={value}"], VERBS["train"], ["b.py"])


def test_plugins_of_submit_are_added_to_those_of_the_command(in_checkout: Path) -> None:
    recipe = in_checkout / "mine.yaml"
    recipe.write_text("plugins: [own.py, package.module]\n")

    def joined(*words: str) -> list[str]:
        return submit.plugin_arguments(["train", "--fresh", str(recipe), *words], VERBS["train"], ["b.py"])

    assert joined() == [f'plugins=["{in_checkout}/own.py", "package.module", "b.py"]']
    assert joined("plugins=[x.py]", "plugins=[a.py]") == ['plugins=["a.py", "b.py"]']


def test_plugins_of_submit_reach_a_verb_whatever_its_words() -> None:
    added = submit.with_plugins(["compare", "--", "budget"], VERBS["compare"], ["b.py", "package.module"])
    assert sent_as(added)[:6] == ["compare", "budget", "--plugin", "b.py", "--plugin", "package.module"]
    added = submit.with_plugins(["tune", "quickstart", "--mode", "soup", "plugins=[a.py]"], VERBS["tune"], ["b.py"])
    assert sent_as(added)[3:] == ['plugins=["a.py"]', 'plugins=["a.py", "b.py"]', "--mode", "soup"]


def test_an_error_in_the_submitted_command_exits_2_without_traceback() -> None:
    command = [sys.executable, "-m", "pipelines.cli", "submit", "--", "train", "quickstart", "plugins=[1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'plugins=[1': expected a list")
    assert "Traceback" not in done.stderr


def test_the_upload_folder_exists_only_until_ray_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job_id: str
) -> None:
    monkeypatch.setattr(upload, "is_checkout", lambda: False)
    monkeypatch.chdir(tmp_path)
    seen: list[Path] = []

    class Client(FakeClient):
        def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any]) -> None:
            seen.append(Path(runtime_env["working_dir"]))
            assert (seen[-1] / "pipelines" / "cli.py").is_file()
            super().submit_job(entrypoint=entrypoint, submission_id=submission_id, runtime_env=runtime_env)

    client: Any = Client()
    submit.submit_once(client, COMMAND)
    client.refusal, client.known = "disk full", {}
    with pytest.raises(UserError, match="disk full"):
        submit.submit_once(client, COMMAND)
    assert len(seen) == 2
    assert not any(folder.exists() for folder in seen)


def test_a_misspelled_verb_and_a_silent_address_are_user_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"'trian' is not a verb that runs as a job\. Did you mean 'train'"):
        submit.run(["trian"], address=None, verbs=VERBS)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with pytest.raises(UserError, match=r"cluster at http://127\.0\.0\.1:1: .* --address http://HOST:8265"):
        submit.run(COMMAND, address="http://127.0.0.1:1", verbs=VERBS)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", ":1", "a b:1", "x:1:2"])
def test_a_silent_bare_address_is_reported_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"^cluster at {address}: .*--address http://HOST:8265"):
        submit.run(COMMAND, address=None, verbs=VERBS)


@pytest.mark.parametrize("status", [401, 403])
def test_a_cluster_that_requires_a_token_says_how_to_set_it(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class TokenRequiredHandler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status, "token needed")

        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with HTTPServer(("127.0.0.1", 0), TokenRequiredHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="RAY_AUTH_TOKEN"):
            submit.run(COMMAND, address=f"http://127.0.0.1:{server.server_port}", verbs=VERBS)
        server.shutdown()


def test_the_result_is_the_last_json_line_of_a_log() -> None:
    assert submit.last_json_line('{"a": 1}\nnoise\n{"b": 2}\n{broken\nlate noise\n') == {"b": 2}
    assert submit.last_json_line("nothing\n") is None


@pytest.mark.ray
def test_a_job_runs_on_a_cluster_once_and_returns_its_result(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray

    monkeypatch.setattr(submit, "job_name", "-".join)  # the real name changes with the code

    address = f"http://{ray._private.worker.global_worker.node.webui_url}"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    first = submit.run(COMMAND, address=address, verbs=VERBS)
    assert first["status"] == "SUCCEEDED"
    assert first["result"]["name"] == "quickstart"
    assert submit.run(COMMAND, address=address, verbs=VERBS) == first
    assert "has already succeeded" in capfd.readouterr().err
    failed = submit.run(["show", "config", "quikstart"], address=address, verbs=VERBS)
    assert failed["status"] == "FAILED"
    assert "Did you mean 'quickstart'?" in failed["message"]


def test_the_cluster_file_satisfies_rays_own_schema() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text(encoding="utf-8")))
    validate_config(config)
    gpus = {name: kind["resources"].get("GPU", 0) for name, kind in config["available_node_types"].items()}
    assert gpus == {"head": 0, "a100_80gb": 8, "a100_40gb": 8}
