"""The nodes of a cluster that was joined: what a driver owns stays on its own, and the loss of one is said.

What runs on a lost node is Ray's to start again elsewhere. A cluster whose head is gone does not come back: the driver
ends with one message, before Ray itself ends the process without a word.
"""

import os
import socket
import sys
import threading
import time
from typing import Any

from pipelines.console import console
from pipelines.jobs.restart import enter_again

LOOK_EVERY_S = 2.0
HEAD_SILENT_S = 6.0  # of a head that restarts in its place, Ray itself waits for a minute


def on_this_node() -> Any:
    """Return the placement of an actor that lives and dies with this driver: one of no CPUs is put anywhere else."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def watch_nodes(address: str) -> None:
    """Say, for as long as this process is on the cluster, which nodes are lost; end it with 2 where the head is."""
    threading.Thread(target=_watch, args=(address,), name="nodes", daemon=True).start()


def wait_for_the_head() -> None:
    """Return when the head answers; where it does not any more, the process ends meanwhile, if it watches."""
    import ray

    until = time.monotonic() + 2 * HEAD_SILENT_S
    while not _answers(ray.get_runtime_context().gcs_address) and time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)


def _watch(address: str) -> None:
    import ray

    head = ray.get_runtime_context().gcs_address
    own = ray.get_runtime_context().get_node_id()
    alive: dict[str, str] = {}
    answered = time.monotonic()
    while ray.is_initialized():
        enter_again()
        if _answers(head):
            answered = time.monotonic()
            alive = _told(alive, own, address)
        elif time.monotonic() - answered > HEAD_SILENT_S:
            _end(address, "the head of the cluster is gone")
        time.sleep(LOOK_EVERY_S)


def _told(before: dict[str, str], own: str, address: str) -> dict[str, str]:
    """Say which nodes are no longer there; return those that are, by id."""
    import ray

    now = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    for lost in before.keys() - now.keys():
        if lost == own:
            _end(address, f"this job's own node ({before[lost]}) is gone")
        console.print(
            f"node {before[lost]} ({lost[:8]}) is lost, {len(now)} left: what ran there starts again elsewhere",
            style="yellow", highlight=False, soft_wrap=True,
        )  # fmt: skip
    return now


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=LOOK_EVERY_S).close()
    except OSError:
        return False
    return True


def _end(address: str, what: str) -> None:
    # At once: whatever else this process would do waits for the cluster.
    print(
        f"error: RAY_ADDRESS={address}: {what}: start a cluster, and the same command goes on from the last checkpoint",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(2)
