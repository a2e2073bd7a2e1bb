"""Nodes of a joined cluster: report lost nodes, and end the driver if the head is lost.

Ray restarts the work of a lost node elsewhere. A cluster whose head is lost does not come back: the driver ends with
one message, before Ray ends the process silently.
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
HEAD_SILENT_S = 6.0  # until a silent head counts as lost; Ray itself waits a minute for a restart


def on_this_node() -> Any:
    """Return the placement that pins an actor to the driver's node; Ray would put an actor of no CPUs anywhere."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def watch_nodes(address: str) -> None:
    """Report lost nodes from a thread while this process is on the cluster; exit with 2 if the head is lost."""
    threading.Thread(target=_watch, args=(address,), name="nodes", daemon=True).start()


def wait_for_the_head() -> None:
    """Wait until the head answers. If it is lost, `watch_nodes` ends the process meanwhile."""
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
            alive = _report_lost(alive, own, address)
        elif time.monotonic() - answered > HEAD_SILENT_S:
            _end(address, "the head of the cluster is gone")
        time.sleep(LOOK_EVERY_S)


def _report_lost(before: dict[str, str], own: str, address: str) -> dict[str, str]:
    """Print which nodes are gone; return the names of the others, by id."""
    import ray

    now = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    for lost in before.keys() - now.keys():
        if lost == own:
            _end(address, f"this job's own node ({before[lost]}) is gone")
        console.print(
            f"node {before[lost]} ({lost[:8]}) is lost, {len(now)} left: its work restarts elsewhere",
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
    # Immediately: a regular exit would wait for the cluster.
    print(
        f"error: RAY_ADDRESS={address}: {what}: start a cluster and run the same command to continue from the last "
        "checkpoint",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(2)
