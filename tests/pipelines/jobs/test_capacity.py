"""Capacity: what does not fit is said before anything waits for it, with the setting to change."""

from typing import Any

import pytest

from pft_core.errors import UserError
from pipelines.jobs import capacity
from pipelines.jobs.capacity import at_once, has_gpus, refuse_missing_resources


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the cluster has; a test may change it."""
    have = {"CPU": 8.0, "GPU": 2.0}
    monkeypatch.setattr(capacity.ray, "cluster_resources", lambda: have)
    monkeypatch.setattr(capacity.os, "cpu_count", lambda: 4)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    return have


def test_workers_that_fit_are_not_refused(cluster: Any) -> None:
    refuse_missing_resources("num_workers", 8, {"CPU": 1})
    refuse_missing_resources("num_workers", 2, {"CPU": 4.0, "GPU": 1.0, "TPU": 0})


def test_what_is_missing_is_named_with_its_setting(cluster: Any) -> None:
    with pytest.raises(UserError, match=r"^n=3 needs 3 GPU, the cluster has 2: lower n to 2, or join a larger"):
        refuse_missing_resources("n", 3, {"CPU": 1, "GPU": 1})
    with pytest.raises(UserError, match=r"n=3 needs 1\.5 TPU, the cluster has 0: ask for what it has \(CPU, GPU\), or"):
        refuse_missing_resources("n", 3, {"TPU": 0.5})


def test_the_remedy_is_one_that_helps(cluster: Any) -> None:
    with pytest.raises(UserError, match="ask for at most 8 CPU for each, or join"):  # fewer workers would not help
        refuse_missing_resources("n", 1, {"CPU": 9})
    del cluster["GPU"]
    with pytest.raises(UserError, match=r"needs 1 GPU, the cluster has 0: set scaling\.use_gpu=false, or join"):
        refuse_missing_resources("scaling.num_workers", 1, {"CPU": 1, "GPU": 1})
    with pytest.raises(UserError, match=r"has 0: set use_gpu=false, or join"):
        refuse_missing_resources("num_workers", 1, {"GPU": 1})


def test_as_many_run_at_once_as_the_scarcest_resource_allows(cluster: Any) -> None:
    assert at_once({"CPU": 2, "GPU": 0}, what="a cell") == 4
    assert at_once({"CPU": 2, "GPU": 1}, what="a cell") == 2
    with pytest.raises(UserError, match=r"a cell needs 3 GPU, the cluster has 2 GPU: .*RAY_ADDRESS"):
        at_once({"GPU": 3}, what="a cell")


def test_on_this_machine_it_is_one_a_core(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    assert at_once({"CPU": 1}, what="a task") == 4


def test_gpus_are_seen_where_there_are_some(cluster: Any) -> None:
    assert has_gpus()
    del cluster["GPU"]
    assert not has_gpus()
