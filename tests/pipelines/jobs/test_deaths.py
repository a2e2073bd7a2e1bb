"""Workers that are killed each time end the job with one message, within a few tries."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pft_core.errors import UserError
from pft_core.evaluation import TaskItem
from pipelines.evaluate import pool
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.request import make_job, resolve_policy
from pipelines.evaluate.worker import task_table
from pipelines.jobs.deaths import MAX_RESTARTS
from pipelines.prepare import worker

pytestmark = pytest.mark.timeout(300)
TRIES_UNTIL_IT_WORKS = MAX_RESTARTS + 4


def dying(calls: Path) -> Callable[..., dict[str, Any]]:
    """Work that kills its process, again and again; after far too many tries it would get through."""

    def die(*args: Any) -> dict[str, Any]:
        with calls.open("a") as counted:
            counted.write("x")
        if calls.stat().st_size < TRIES_UNTIL_IT_WORKS:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    return die


def killed(worker: str) -> Any:
    said = rf"{worker} was killed at the same work {MAX_RESTARTS + 1} times, most likely for lack of memory: .* memory$"
    return pytest.raises(UserError, match=said)


@pytest.mark.ray
def test_an_actor_of_evaluate_that_dies_each_time_ends_it(ray_cluster, tiny_qwen2, tmp_path, capfd) -> None:
    config = EvaluateConfig(model=str(tiny_qwen2), data=str(tmp_path), output=str(tmp_path / "o"), use_gpu=False)
    job = make_job(config, resolve_policy(config, None))
    die = dying(tmp_path / "calls")
    actor = type("Dying", (), {"__init__": lambda self, job: None, "__call__": die})
    with killed("a worker that was asking") as raised:
        pool.on_ray(actor, [task_table([TaskItem("0", "What now ?", ("boat", "river"))], 0)], [job], num_workers=1)
    assert "lower tokens_per_batch=8192 or num_workers=1" in str(raised.value)
    assert (tmp_path / "calls").stat().st_size == MAX_RESTARTS + 1
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.ray
def test_a_task_of_prepare_that_dies_each_time_ends_it(ray_cluster, tmp_path, capfd) -> None:
    with killed("a worker that was validating") as raised:
        worker.on_ray(dying(tmp_path / "calls"), [0], num_workers=1, doing="validating")
    assert "lower num_workers=1" in str(raised.value)
    assert (tmp_path / "calls").stat().st_size == MAX_RESTARTS + 1
    assert "Traceback" not in capfd.readouterr().err
