"""A chat answers typed lines under both poles as an evaluation does, and ends quietly however it ends."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pft_core.errors import UserError
from pipelines.chat import conversation, job
from pipelines.chat.lines import Asked, Command, read_line
from pipelines.evaluate.evaluation_request import EvaluateConfig
from tests.builders import record, write_dataset
from tests.serving import found_offline, write_policy


@pytest.fixture(scope="module")
def policy(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("chat") / "mine", tiny_qwen2, seed=3)


def chat(policy: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    return job.run(str(policy), policy.parent)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("  What now?\n", Asked("What now?")),
        ("What now? | go |stay|  wait", Asked("What now?", ("go", "stay", "wait"))),
        ("/axis  Pace and time ", Command("axis", "Pace and time")),
        ("/quit", Command("quit", "")),
        ("   ", None),
    ],
)
def test_a_line_is_a_scenario_with_or_without_options_or_a_command(line: str, said: object) -> None:
    assert read_line(line) == said


@pytest.mark.parametrize("line", ["What now? | go", "What now? | go | ", "| go | stay", "|"])
def test_a_scenario_with_too_few_options_is_refused(line: str) -> None:
    with pytest.raises(UserError, match="give a scenario and at least two options"):
        read_line(line)


def test_a_chat_chooses_as_an_evaluation_does(policy, tmp_path, monkeypatch) -> None:
    records = [record(i) for i in range(4)]
    data = write_dataset(tmp_path / "data", records)
    asked = EvaluateConfig(model=str(policy), data=str(data), output=str(tmp_path / "out"), use_gpu=False)
    offline, _ = found_offline(asked)
    lines = [" | ".join([r.scenario, *(option.text for option in r.options)]) for r in records]
    said = chat(policy, monkeypatch, *lines)
    assert [[a["choice"] for a in each["answers"]] for each in said["exchanges"]] == [
        [next(iter(choice or ())) for choice in outcome.chosen] for outcome in offline
    ]
    for each in said["exchanges"]:
        assert [(a["policy"], a["pole"]) for a in each["answers"]] == [("policy", "Bold"), ("policy", "Careful")]
        assert all(sum(a["probabilities"]) == pytest.approx(1) for a in each["answers"])


def test_commands_change_the_axis_and_show_the_base_and_mistakes_do_not_end_the_chat(
    policy, monkeypatch, capfd
) -> None:
    monkeypatch.setattr(conversation, "MAX_TOKENS", 8)
    lines = ("Plan? | go", "/axis Pac", "/axis Pace", "/base", "Plan? | go | stay", "/foo", "Hello", "/quit", "no")
    said = chat(policy, monkeypatch, *lines)
    choice, text = said["exchanges"]
    assert said["questions"] == 2
    expected = [("policy", "Fast"), ("policy", "Slow"), ("base", "Fast"), ("base", "Slow")]
    assert [(a["policy"], a["pole"]) for a in choice["answers"]] == expected
    assert choice["answers"][0]["probabilities"] != choice["answers"][2]["probabilities"]
    assert all(isinstance(a["text"], str) and a["choice"] is None for a in text["answers"])
    printed = " ".join(capfd.readouterr().err.split())
    for words in (
        "error: 'Plan? | go': give a scenario",
        "error: /axis Pac: no such axis. Did you mean 'Pace'?",
        "/foo: no such command",
        "policy: Fast policy: Slow base: Fast base: Slow",
        "(prompt.answer=letter), free text is outside its training",
    ):
        assert words in printed


def test_ctrl_c_ends_a_chat_with_its_result(policy, monkeypatch) -> None:
    def typed(*, is_typed: bool) -> Iterator[str]:
        yield "Plan? | go | stay"
        os.kill(os.getpid(), signal.SIGINT)
        yield "never"

    monkeypatch.setattr(job, "lines", typed)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert chat(policy, monkeypatch)["questions"] == 1
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_chat_needs_a_policy_and_names_those_inside(policy: Path) -> None:
    with pytest.raises(
        UserError, match=rf"no policy, as it has no model_ref.json: give one of {re.escape(str(policy))}"
    ):
        job.run(str(policy.parent), Path("runs"))
    with pytest.raises(UserError, match="miner: no such run here or in"):
        job.run("miner", policy.parent)


def test_answers_cannot_steer_the_terminal(policy, monkeypatch, capfd) -> None:
    chat(policy, monkeypatch, "Plan? | go \x1b[2J | stay")
    assert "\x1b[2J" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("end", ["interrupted", "end of input", "/quit"])
def test_the_verb_ends_with_0_and_one_json_object(policy: Path, end: str) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "chat", str(policy)]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes, text=True) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write("Plan? | go | stay\n" + ("/quit\n" if end == "/quit" else ""))
        process.stdin.flush()
        if end == "interrupted":
            for line in process.stderr:
                if "(B) stay" in line:
                    break
            process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["questions"] == 1
