"""A verb runs as a Ray job: once, followed to its end, its result handed back."""

import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cluster import submit
from pft_core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ["show", "config", "quickstart"]


class FakeClient:
    """Stands in for Ray's client: remembers what was submitted."""

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
def test_a_job_starts_only_where_none_runs_or_has_succeeded(
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
    with pytest.raises(UserError, match="does not take the job: disk full"):
        submit.submit_once(client, COMMAND)


def test_a_cluster_whose_agent_is_late_is_waited_for(job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client: Any = FakeClient()
    client.refusal = "Request failed with status code 500: No available agent to submit job"
    monkeypatch.setattr(submit.time, "sleep", lambda seconds: setattr(client, "refusal", ""))
    assert submit.submit_once(client, COMMAND) == "pft-job"
    assert client.submitted == ["pft-job"]


def test_another_recipe_or_data_set_behind_the_same_words_is_another_job(tmp_path: Path) -> None:
    command = ["train", "quickstart", f"data={tmp_path}"]
    names = set()
    for content in ("1", "2"):
        (tmp_path / "manifest.json").write_text(content)
        names.add(submit.job_name(command))
    assert len(names) == 2


def test_the_id_names_verb_and_recipe_and_follows_the_whole_command() -> None:
    name = submit.job_name(["train", "pipelines/recipes/quickstart.yaml", "train.lr=1e-4"])
    assert name.startswith("pft-train-quickstart-")
    assert name != submit.job_name(["train", "pipelines/recipes/quickstart.yaml", "train.lr=2e-4"])


def test_paths_are_sent_as_the_cluster_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vcd").mkdir()
    sent = submit.for_the_cluster(["train", "quickstart", "data=vcd", "model=org/name", "train.lr=1e-4"])
    assert sent == [
        "train",
        "quickstart",
        f"storage={tmp_path}/runs",
        f"data={tmp_path}/vcd",
        "model=org/name",
        "train.lr=1e-4",
    ]
    sent = submit.for_the_cluster(["prepare", "--source", "vcd", "--input", "vcd", "--output", "out"])
    assert sent == ["prepare", "--source", "vcd", "--input", f"{tmp_path}/vcd", "--output", f"{tmp_path}/out"]
    recipe = ROOT / "pipelines" / "recipes" / "quickstart.yaml"
    assert submit.for_the_cluster(["show", "config", os.path.relpath(recipe)])[2] == "pipelines/recipes/quickstart.yaml"


def test_a_recipe_outside_the_checkout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(UserError, match="copy it there"):
        submit.for_the_cluster(["train", str(tmp_path / "mine.yaml")])


def test_a_misspelt_verb_and_a_silent_address_are_the_users_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"'trian' is not a verb that runs as a job\. Did you mean 'train'"):
        submit.run(["trian"], address=None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with pytest.raises(UserError, match=r"cluster at http://127\.0\.0\.1:1: .* --address http://HOST:8265"):
        submit.run(COMMAND, address="http://127.0.0.1:1")


@pytest.mark.parametrize("status", [401, 403])
def test_a_cluster_that_asks_for_a_token_says_where_to_put_it(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Locked(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status, "token needed")

        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with HTTPServer(("127.0.0.1", 0), Locked) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="RAY_AUTH_TOKEN"):
            submit.run(COMMAND, address=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_the_result_is_the_last_json_line_of_a_log() -> None:
    assert submit.last_json_line('{"a": 1}\nnoise\n{"b": 2}\n{broken\nlate noise\n') == {"b": 2}
    assert submit.last_json_line("nothing\n") is None


@pytest.mark.ray
def test_a_job_runs_on_a_cluster_once_and_hands_its_result_back(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray

    monkeypatch.setattr(submit, "job_name", "-".join)  # the real one changes with the code

    address = f"http://{ray._private.worker.global_worker.node.webui_url}"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    first = submit.run(COMMAND, address=address)
    assert first["status"] == "SUCCEEDED"
    assert first["result"]["name"] == "quickstart"
    assert submit.run(COMMAND, address=address) == first
    assert "has succeeded already" in capfd.readouterr().err
    failed = submit.run(["show", "config", "quikstart"], address=address)
    assert failed["status"] == "FAILED"
    assert "Did you mean 'quickstart'?" in failed["message"]


def test_the_cluster_file_satisfies_rays_own_schema() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text(encoding="utf-8")))
    validate_config(config)
    gpus = {name: kind["resources"].get("GPU", 0) for name, kind in config["available_node_types"].items()}
    assert gpus == {"head": 0, "a100_80gb": 8, "a100_40gb": 8}
