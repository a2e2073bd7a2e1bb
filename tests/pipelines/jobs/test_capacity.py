"""Resources that the cluster lacks are reported before anything waits, with the setting to change."""

from typing import Any

import pytest

from pft_core.errors import UserError
from pipelines.jobs import capacity
from pipelines.jobs.capacity import has_gpus, num_parallel, refuse_missing_resources


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Resources of the cluster, which a test may change."""
    have = {"CPU": 8.0, "GPU": 2.0}
    monkeypatch.setattr(capacity.ray, "cluster_resources", lambda: have)
    monkeypatch.setattr(capacity.os, "cpu_count", lambda: 4)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    return have


def test_workers_that_fit_are_not_refused(cluster: Any) -> None:
    refuse_missing_resources("num_workers", 8, {"CPU": 1})
    refuse_missing_resources("num_workers", 2, {"CPU": 4.0, "GPU": 1.0, "TPU": 0})


def test_a_missing_resource_is_named_with_its_setting(cluster: Any) -> None:
    with pytest.raises(UserError, match=r"^n=3 needs 3 GPU, but the cluster has 2: lower n to 2, or join a larger"):
        refuse_missing_resources("n", 3, {"CPU": 1, "GPU": 1})
    with pytest.raises(
        UserError, match=r"n=3 needs 1\.5 TPU, but the cluster has 0: request a resource that it has \(CPU, GPU\), or"
    ):
        refuse_missing_resources("n", 3, {"TPU": 0.5})


def test_the_remedy_is_one_that_helps(cluster: Any) -> None:
    with pytest.raises(
        UserError, match="request at most 8 CPU for each worker, or join"
    ):  # fewer workers would not help
        refuse_missing_resources("n", 1, {"CPU": 9})
    del cluster["GPU"]
    with pytest.raises(UserError, match=r"needs 1 GPU, but the cluster has 0: set scaling\.use_gpu=false, or join"):
        refuse_missing_resources("scaling.num_workers", 1, {"CPU": 1, "GPU": 1})
    with pytest.raises(UserError, match=r"has 0: add --no-use-gpu, or join"):
        refuse_missing_resources("num_workers", 1, {"GPU": 1})


def test_the_scarcest_resource_limits_how_many_run_at_once(cluster: Any) -> None:
    assert num_parallel({"CPU": 2, "GPU": 0}, what="a cell") == 4
    assert num_parallel({"CPU": 2, "GPU": 1}, what="a cell") == 2
    with pytest.raises(UserError, match=r"a cell needs 3 GPU, but the cluster has 2 GPU: .*RAY_ADDRESS"):
        num_parallel({"GPU": 3}, what="a cell")


def test_a_local_ray_runs_one_task_per_core(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    assert num_parallel({"CPU": 1}, what="a task") == 4


def test_gpus_of_the_cluster_are_detected(cluster: Any) -> None:
    assert has_gpus()
    del cluster["GPU"]
    assert not has_gpus()
