"""Workers of `prepare` and `evaluate` are killed: the result is the same as without a kill."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pft_core.data.preferences import load_space
from pft_core.evaluation import TaskItem
from pipelines.encode import job as encode
from pipelines.evaluate import job as evaluate
from pipelines.evaluate import pool
from pipelines.evaluate.evaluate_config import EvaluateConfig
from pipelines.evaluate.evaluation_request import make_job, resolve_policy
from pipelines.prepare import job as prepare
from pipelines.prepare.prepare_config import PrepareConfig
from tests.builders import record, write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(300)]


def killing_once(work: Callable[..., Any], calls: Path) -> Callable[..., Any]:
    """Kill the process during the second call of `work`. calls: a file that counts the calls."""
    calls.touch()

    def killed_once(*args: Any, **kwargs: Any) -> Any:
        with calls.open("a") as counted:
            counted.write("x")
        if calls.stat().st_size == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*args, **kwargs)

    return killed_once


def mortal(actor: Any, calls: Path) -> Any:
    call = killing_once(actor.__call__, calls)
    return type(actor.__name__, (actor,), {"__call__": lambda self, batch: call(self, batch)})


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def prepared(folder: Path, output: Path, model: Path) -> dict[str, bytes]:
    inputs = [str(path) for path in sorted(folder.glob("*.jsonl"))]
    prepare.run(PrepareConfig(source="vcd", input=inputs, output=str(output), model=str(model), num_workers=2))
    return files_in(output)


def write_rows(folder: Path) -> None:
    axis = load_space("vcd").axes[0]
    for part in range(4):
        rows = [
            {
                "scenario": f"The town has plan {number} .",
                "preference domain": axis.name,
                "options": [{"text": f"{pole.name} {number}", "bias": pole.name} for pole in (axis.first, axis.second)],
            }
            for number in range(10 * part, 10 * part + 10)
        ]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("killed", ["stage", "write_shard", "encode"])
def test_a_killed_worker_of_prepare_changes_no_byte(
    killed: str, ray_cluster: None, tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "RECORDS_PER_SHARD", 7)
    monkeypatch.setattr(encode, "PAIRS_ENCODED_HERE", 0)
    write_rows(tmp_path)
    whole = prepared(tmp_path, tmp_path / "whole", tiny_qwen2)
    calls = tmp_path / "calls"
    if killed == "encode":
        monkeypatch.setattr(encode, "_ShardEncoder", mortal(encode._ShardEncoder, calls))
    else:
        monkeypatch.setattr(prepare, killed, killing_once(getattr(prepare, killed), calls))
    assert prepared(tmp_path, tmp_path / "killed", tiny_qwen2) == whole
    assert calls.stat().st_size > 2


def evaluated(model: Path, data: Path, output: Path) -> dict[str, bytes]:
    evaluate.run(
        EvaluateConfig(model=str(model), data=str(data), output=str(output), use_gpu=False, num_workers=2, policy="p")
    )
    return files_in(output)


def test_a_killed_actor_of_evaluate_changes_no_answer(
    ray_cluster: None, tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_dataset(tmp_path / "data", [record(number) for number in range(200)])
    whole = evaluated(tiny_qwen2, data, tmp_path / "whole")
    shutil.rmtree(data / "base_answers")  # else they would be reused
    calls = tmp_path / "calls"
    monkeypatch.setattr(pool, "PolicyActor", mortal(pool.PolicyActor, calls))
    assert evaluated(tiny_qwen2, data, tmp_path / "killed")["outcomes.jsonl"] == whole["outcomes.jsonl"]
    assert calls.stat().st_size > 2


def test_a_killed_actor_of_a_task_changes_no_reply(
    ray_cluster: None, tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluateConfig(model=str(tiny_qwen2), data=str(tmp_path), output=str(tmp_path / "o"), use_gpu=False)
    job = make_job(config, resolve_policy(config, None))
    items = [TaskItem(str(i), f"The town has plan {i} .", ("boat", "river market")) for i in range(200)]
    whole = pool.ask_task_on_ray(items, job, num_workers=2)
    calls = tmp_path / "calls"
    monkeypatch.setattr(pool, "TaskActor", mortal(pool.TaskActor, calls))
    assert pool.ask_task_on_ray(items, job, num_workers=2) == whole
    assert calls.stat().st_size > 2
