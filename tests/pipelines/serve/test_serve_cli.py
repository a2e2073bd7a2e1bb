"""Tests of `pft serve` as a user runs it, on vLLM if it is installed: keys, evaluation scores, a clean shutdown."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import psutil
import pytest
import yaml
from typer.testing import CliRunner

from pft_core.errors import UserError
from pft_core.evaluation.answers import AnswerSettings, Question, encode_options, score_branches
from pft_core.policies.model import load_policy
from pft_core.policies.model_ref import ModelRef
from pft_core.policies.pretrained import load_tokenizer
from pft_core.scoring.scorer import BranchScorer
from pipelines.cli import app
from pipelines.evaluate.endpoint import Endpoint
from pipelines.evaluate.evaluation_request import EvaluateConfig
from pipelines.evaluate.job import run
from pipelines.serve import job
from pipelines.serve.serve_config import RECIPES, ServeConfig, ServingEngineSettings, load_serve_config
from tests.builders import record, write_dataset
from tests.serving import CPU, assert_same_outcomes, found_offline, wide_base, write_policy

ENGINE = "vllm" if importlib.util.find_spec("vllm") else "transformers"
RECORDS = [record(i, axis=axis) for i, axis in enumerate(["Risk", "Pace"] * 3)]


@dataclass
class ServerProcess:
    """A server process with its URL, a key, the policy that it serves, and its log."""

    process: subprocess.Popen[str]
    url: str
    key: str
    policy: Path
    log: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_qwen2: Path) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("cli")
    policy = write_policy(root / "policy", wide_base(root / "base", tiny_qwen2), seed=3)
    key = pft("key", "alice", "--file", str(root / "keys.json"))["key"]
    recipe = {"policy": str(policy), "engine": {"name": ENGINE, "max_length": 512, "max_adapter_rank": 8},
              "store": {"cache": str(root / "cache")}, "keys": str(root / "keys.json"), "port": 0}  # fmt: skip
    (root / "serve.yaml").write_text(yaml.safe_dump(recipe))
    log = root / "log"
    with log.open("w") as stderr:
        command = [sys.executable, "-m", "pipelines.cli", "serve", str(root / "serve.yaml")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=own_ray())
        try:
            yield ServerProcess(process, url_in(log, process), key, policy, log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(60)


def pft(*arguments: str) -> Any:
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout.splitlines()[-1])


def own_ray() -> dict[str, str]:
    """Return the environment without RAY_ADDRESS, so that the server starts its own Ray."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def url_in(log: Path, process: subprocess.Popen[str]) -> str:
    end = time.monotonic() + 300  # vLLM and Ray start, on a machine that may be busy
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"serving policy at (http://\S+)", log.read_text()):
            return found[1]
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


@pytest.mark.ray
@pytest.mark.own_ray
@pytest.mark.vllm
def test_a_server_with_keys_gives_the_same_scores_as_the_evaluation_and_stops_cleanly(
    served: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert httpx.get(f"{served.url}/v1/models").status_code == 401
    assert {ip.removeprefix("::ffff:") for ip in listeners(served.process.pid)} == {"127.0.0.1"}
    with pytest.raises(UserError, match="PFT_API_KEY"):
        Endpoint(served.url).get("/v1/models")
    monkeypatch.setenv("PFT_API_KEY", served.key)
    ref = ModelRef.load(served.policy)
    how: dict[str, Any] = {
        "tokenizer": load_tokenizer(ref.base),
        "settings": AnswerSettings(ref.style, ref.space, 512, 8192, 1),
    }
    scorer = BranchScorer(load_policy(ref.base, str(ref.adapter), None, precision="fp32", device=CPU))
    endpoint, worst = Endpoint(served.url), 0.0
    for item in RECORDS:
        body = {"scenario": item.scenario, "options": [option.text for option in item.options]}
        for side, pole in ((0, "first"), (1, "second"), (None, None)):
            preference = pole and {"axis": item.axis, "pole": pole}
            choice = endpoint.post("/v1/choose", {**body, "preference": preference, "forms": ["one"]})
            (example,) = encode_options([Question(item, "one", side)], **how)
            (offline,) = score_branches([example], scorer=scorer, tokens_per_batch=8192)  # type: ignore[list-item]
            logps = np.array([option["logprob"] for option in choice["options"]])
            worst = max(worst, float(np.abs(logps - offline).max()))
    assert worst < 1e-3, "the same weights in float32, summed over about 13 tokens"
    data = write_dataset(tmp_path / "data", RECORDS, forms=("one", "all"))
    how = {"data": str(data), "output": str(tmp_path / "report")}
    assert Path(run(EvaluateConfig(endpoint=served.url, **how))["report_json"]).is_file()
    offline = EvaluateConfig(model=str(served.policy), max_length=512, precision="fp32", use_gpu=False, **how)
    outcomes, _ = found_offline(offline)
    lines = (tmp_path / "report" / "outcomes.jsonl").read_text().splitlines()
    assert_same_outcomes(lines, outcomes)

    with ThreadPoolExecutor(1) as pool:
        body = {"model": "base", "prompt": "The town", "max_tokens": 450, "temperature": 0}
        long = pool.submit(endpoint.post, "/v1/completions", body)
        wait_until_it_answers_one(served)
        assert not long.done(), "the text is being generated when the server is stopped"
        served.process.send_signal(signal.SIGTERM)
        wait_until_it_stops(served)
        refused = httpx.post(f"{served.url}/v1/completions", json=body, headers=bearer(served))
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert not long.done(), "accepted requests continue"
        assert long.result(timeout=60)["usage"]["completion_tokens"] == 450
    out, _ = served.process.communicate(timeout=60)
    assert served.process.returncode == 0
    assert json.loads(out.splitlines()[-1]) == {"url": served.url, "status": "stopped"}
    assert served.key not in served.log.read_text()
    logged = [json.loads(line) for line in served.log.read_text().splitlines() if line.startswith('{"time"')]
    assert any((line["route"], line["status"], line["key"]) == ("/v1/models", 401, None) for line in logged)
    choices = [line for line in logged if (line["route"], line["status"]) == ("/v1/choose", 200)]
    keys_and_policies = {(line["key"], line["policy"].partition("@")[0]) for line in choices}
    assert keys_and_policies == {("alice", "policy"), ("alice", "base")}
    completions = [line for line in logged if line["route"] == "/v1/completions"]
    assert {(line["status"], line["policy"]) for line in completions} == {(200, "base"), (503, None)}
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{served.url}/healthz")


def bearer(served: ServerProcess) -> dict[str, str]:
    return {"Authorization": f"Bearer {served.key}"}


def listeners(pid: int) -> list[str]:
    """Return the addresses on which a process and its descendants listen."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return [c.laddr.ip for p in processes for c in p.net_connections("tcp") if c.status == "LISTEN"]


def wait_until_it_answers_one(served: ServerProcess) -> None:
    """Wait for a request in flight beside the one that reads the metrics."""
    end = time.monotonic() + 30
    while "pft_requests_in_flight 2.0" not in httpx.get(f"{served.url}/metrics", headers=bearer(served)).text:
        assert time.monotonic() < end
        time.sleep(0.05)


def wait_until_it_stops(served: ServerProcess) -> None:
    end = time.monotonic() + 30
    while httpx.get(f"{served.url}/readyz").status_code != 503:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_user_error_exits_with_code_2_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "serve.yaml").write_text(f"policy: {tmp_path}\n")
    monkeypatch.setattr(job, "start_ray", lambda: pytest.fail("Ray was started"))
    done = CliRunner().invoke(app, ["serve", str(tmp_path / "serve.yaml"), "port=0"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "model_ref.json: no such file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["host=0.0.0.0"], "is reachable from other machines"),
        (["port=70000"], "port=70000"),
        (["scalling.min_replicas=2"], "Did you mean"),
        (["scaling.min_replicas=2"], "exceeds max_replicas=1"),
        (["adapters={policy: x}"], "is taken"),
        (["engine.name=vllm", "steering={vectors: x, layer: 1, multiplier: 2.0}"], "engine.name=transformers"),
    ],
)
def test_a_recipe_that_cannot_be_served_is_refused_with_the_reason(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    (tmp_path / "serve.yaml").write_text(f"policy: {tmp_path}\n")
    with pytest.raises(UserError, match=message):
        load_serve_config(tmp_path / "serve.yaml", overrides)


@pytest.mark.parametrize("recipe", [path.stem for path in RECIPES.glob("*.yaml")])
def test_every_shipped_recipe_is_valid(recipe: str) -> None:
    assert load_serve_config(recipe).policy


def test_the_start_says_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    def refuse(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(job, "start_ray", lambda: None)
    monkeypatch.setattr(job, "deploy", refuse)
    monkeypatch.setattr(job.console, "print", lambda text, **_: lines.append(text))
    with pytest.raises(InterruptedError):
        job.answer(ServeConfig(policy="/runs/mine", engine=ServingEngineSettings(name="transformers")), None)
    assert lines == ["loading /runs/mine on transformers ..."]
