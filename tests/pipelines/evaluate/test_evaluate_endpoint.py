"""An evaluation through a server gives the same numbers as one offline."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pft_core.data.records import Option, paired_example
from pft_core.errors import UserError
from pft_core.files import read_json
from pft_core.policies.model_ref import ModelRef
from pipelines.evaluate.endpoint import Endpoint
from pipelines.evaluate.evaluation_request import EvaluateConfig
from pipelines.evaluate.job import run
from tests.builders import record, write_dataset
from tests.serving import LocalServer, assert_same_outcomes, found_offline, serve_config, write_policy

FREE = [
    paired_example("Pace", f"Plan {i} ?", [Option(f"go now {i}", 0), Option("stay", 1)], "response") for i in range(2)
]
CHOICES = [
    record(i, axis=axis, num_options=n) for i, (axis, n) in enumerate([("Risk", 3), ("Pace", 2), ("Risk", 2)] * 2)
]


@pytest.fixture(scope="module")
def policy(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policies") / "policy", tiny_qwen2, seed=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    long = record(99, axis="Risk")
    long = paired_example("Risk", "plan " * 500, long.options)
    return write_dataset(tmp_path_factory.mktemp("data") / "d", [*CHOICES, *FREE, long], forms=("one", "all"))


@pytest.fixture(scope="module")
def server(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    config = serve_config(policy, tmp_path_factory.mktemp("cache"), engine={"name": "transformers", "max_length": 512})
    with LocalServer(config).running() as running:
        yield running


@pytest.mark.parametrize("scoring", [None, "generate"])
def test_what_is_chosen_and_reported_is_what_the_offline_evaluation_finds(
    server: LocalServer, policy: Path, data: Path, tmp_path: Path, scoring: Any
) -> None:
    how: dict[str, Any] = {"data": str(data), "output": str(tmp_path / "r"), "scoring": scoring, "max_new_tokens": 20}
    result = run(EvaluateConfig(endpoint=server.url, **how))
    offline = EvaluateConfig(model=str(policy), max_length=512, precision="fp32", use_gpu=False, **how)
    outcomes, rejects = found_offline(offline)
    lines = (tmp_path / "r" / "outcomes.jsonl").read_text().splitlines()
    assert_same_outcomes(lines, outcomes)
    written = [json.loads(line) for line in (tmp_path / "r" / "rejects.jsonl").read_text().splitlines()]
    assert [(reject["row"], reject["reason"]) for reject in written] == [(r.row, r.reason) for r in rejects]
    assert rejects, "the long record is in the data"
    report = read_json(Path(result["report_json"]), what="a report")
    assert report["items"]["in"] == len(outcomes) + len(rejects)
    assert report["digests"]["adapter_sha256"] == ModelRef.load(policy).adapter_sha256
    assert any(row["metric"] == "leak" and row["value"] is not None for row in report["rows"])


def test_another_style_of_answer_is_refused(server: LocalServer, data: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(endpoint=server.url, data=str(data), output=str(tmp_path), scoring="option")
    with pytest.raises(UserError, match="by letter"):
        run(config)


def test_a_server_that_is_not_there_is_the_askers_mistake(data: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(endpoint="http://127.0.0.1:9", data=str(data), output=str(tmp_path))
    with pytest.raises(UserError, match="is the server running"):
        run(config)


def test_a_busy_server_is_asked_again_with_the_same_request_id() -> None:
    seen: list[str | None] = []

    class BusyServerHandler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["X-Request-Id"])
            self.send_response((429, 503, 200)[len(seen) - 1])
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(b'{"ok": 1}')

        def log_message(self, *_: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), BusyServerHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    assert Endpoint(f"http://127.0.0.1:{server.server_port}/v1").get("/x") == {"ok": 1}
    server.shutdown()
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert seen[0]


@contextlib.contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Run a server that gives the same answer to every request."""

    class FixedAnswerHandler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), FixedAnswerHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>", "the server lists no models"),
        (200, b"[]", "the server lists no models"),
        (200, b'{"data": []}', "the server lists no models"),
        (200, b'{"data": [{"id": "x"}]}', "the server does not describe its model"),
        (500, b'{"error": "x"}', "500: "),
        (404, b'{"error": {"message": "not here"}}', "404: not here"),
    ],
)
def test_what_is_no_server_of_ours_is_told_as_such(
    data: Path, tmp_path: Path, status: int, body: bytes, message: str
) -> None:
    with answering(status, body) as url, pytest.raises(UserError, match=message):
        run(EvaluateConfig(endpoint=url, data=str(data), output=str(tmp_path / "r")))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("key", ["kä", "a\nb"])
def test_a_key_that_is_none_is_refused_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFT_API_KEY", key)
    with pytest.raises(UserError, match="PFT_API_KEY") as refused:
        Endpoint("http://127.0.0.1:9")
    assert key not in str(refused.value)


def test_a_url_that_is_none_is_told() -> None:
    with pytest.raises(UserError, match="not a URL"):
        Endpoint("http://[::1")


def test_a_server_that_starts_again_is_waited_for() -> None:
    """The connection is refused for a while after the first answer."""
    with answering(200, b'{"ok": 1}') as url:
        endpoint = Endpoint(url)
        endpoint.get("/x")
    port = int(url.rpartition(":")[2])

    def come_back() -> None:
        class RestartedServerHandler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'{"ok": 2}')

            def log_message(self, *_: Any) -> None:
                return

        HTTPServer(("127.0.0.1", port), RestartedServerHandler).handle_request()

    threading.Timer(0.3, come_back).start()
    assert endpoint.get("/x") == {"ok": 2}
