"""Workers that are killed at every attempt end the job with one message after a few attempts."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError

from pft_core.errors import UserError
from pft_core.evaluation import TaskItem
from pft_core.training.memory_fallback import MemoryFallback, MemoryUse
from pipelines.config import RunConfig
from pipelines.encode import job as encode
from pipelines.evaluate import pool
from pipelines.evaluate.answering_actors import task_table
from pipelines.evaluate.evaluate_config import EvaluateConfig
from pipelines.evaluate.evaluation_request import make_job, resolve_policy
from pipelines.jobs.worker_deaths import MAX_RESTARTS
from pipelines.prepare import prepare_tasks
from pipelines.train import job

pytestmark = pytest.mark.timeout(300)
TRIES_UNTIL_IT_WORKS = MAX_RESTARTS + 4


def dying(calls: Path) -> Callable[..., dict[str, Any]]:
    """Return work that kills its process at each of many attempts, and then succeeds."""

    def die(*args: Any) -> dict[str, Any]:
        with calls.open("a") as counted:
            counted.write("x")
        if calls.stat().st_size < TRIES_UNTIL_IT_WORKS:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    return die


def killed(worker: str) -> Any:
    times = rf"{worker} was killed during the same work {MAX_RESTARTS + 1} times"
    return pytest.raises(UserError, match=rf"{times}, most likely for lack of memory: .* memory$")


@pytest.mark.ray
def test_an_evaluate_actor_that_always_dies_ends_the_job(ray_cluster, tiny_qwen2, tmp_path, capfd) -> None:
    config = EvaluateConfig(model=str(tiny_qwen2), data=str(tmp_path), output=str(tmp_path / "o"), use_gpu=False)
    asked = make_job(config, resolve_policy(config, None))
    die = dying(tmp_path / "calls")
    actor = type("Dying", (), {"__init__": lambda self, job: None, "__call__": die})
    with killed("an evaluation worker") as raised:
        pool.on_ray(actor, [task_table([TaskItem("0", "What now ?", ("boat", "river"))], 0)], [asked], num_workers=1)
    assert "memory: lower tokens_per_batch=8192, or give it more memory" in str(raised.value)
    assert (tmp_path / "calls").stat().st_size == MAX_RESTARTS + 1
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.ray
def test_a_prepare_task_that_always_dies_ends_the_job(ray_cluster, tmp_path, capfd) -> None:
    with killed("a worker that was validating") as raised:
        prepare_tasks.run_on_ray(dying(tmp_path / "calls"), [0], num_workers=1, doing="validating")
    assert "memory: give it more memory" in str(raised.value)
    assert (tmp_path / "calls").stat().st_size == MAX_RESTARTS + 1
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("dies_in", ["__init__", "__call__"])
def test_an_encoding_actor_that_always_dies_ends_the_job(dies_in, ray_cluster, tmp_path, monkeypatch) -> None:
    works: Any = {"__init__": lambda self: None, "__call__": lambda self, batch: {"number": [0]}}
    monkeypatch.setattr(encode, "_ShardEncoder", type("Dying", (), works | {dies_in: dying(tmp_path / "calls")}))
    with killed("a worker that was encoding"):
        encode._encode_on_ray([{"number": 0, "records": "", "part": ""}], {}, concurrency=1)
    assert (tmp_path / "calls").stat().st_size == MAX_RESTARTS + 1


@pytest.mark.parametrize(
    ("is_tight", "said"), [(True, "out of memory: up to 99 tokens"), (False, "lower train.tokens")]
)
def test_training_workers_that_always_die_end_the_run_with_one_message(is_tight, said, monkeypatch) -> None:
    died = WorkerGroupError("", {0: ActorDiedError(), 1: ActorDiedError()})
    planned = MemoryUse(MemoryFallback.PLANNED, 9e9 if is_tight else 1e9, 4e9, tokens_at_once=99, longest_pair_tokens=9)
    monkeypatch.setattr(job.ray, "get", lambda planned: planned)
    mailbox = SimpleNamespace(planned=SimpleNamespace(remote=lambda: planned))
    with pytest.raises(UserError, match=said), job.killed_workers_explained(RunConfig(), mailbox):
        raise died
    with pytest.raises(WorkerGroupError), job.killed_workers_explained(RunConfig(), mailbox):
        raise WorkerGroupError("", {0: ValueError("a fault of ours")})


def test_a_helper_process_that_always_dies_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[Any] = []

    def lost(*args: Any) -> None:
        attempts.append(args)
        raise ActorDiedError if len(attempts) % 2 else job.MailboxLost

    monkeypatch.setattr(job, "train_once", lost)
    monkeypatch.setattr(job, "wait_for_the_head", lambda: None)
    nothing: Any = None
    with killed("a helper process of the run"):
        job.train_on_ray(nothing, nothing, nothing, nothing)
    assert len(attempts) == MAX_RESTARTS + 1


def test_tasks_killed_by_ray_for_memory_have_as_many_attempts() -> None:
    code = "import os, sys, pipelines; assert 'ray' not in sys.modules; print(os.environ['RAY_task_oom_retries'])"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert int(said) == MAX_RESTARTS
