"""What the cluster has, and whether that is enough for a job."""

import os
from collections.abc import Mapping

import ray

from pft_core.errors import UserError


def has_gpus() -> bool:
    return ray.cluster_resources().get("GPU", 0) > 0


def refuse_missing_resources(setting: str, number: int, each: Mapping[str, float]) -> None:
    """Say before waiting that the cluster is too small for so many workers. Raises UserError.

    setting: where the number was given; each: the resources of one worker.
    """
    have = ray.cluster_resources()
    for name, amount in each.items():
        if number * amount > have.get(name, 0):
            raise UserError(
                f"{setting}={number} needs {number * amount:g} {name}, the cluster has {have.get(name, 0):g}: "
                f"lower {setting}, or join a larger cluster with RAY_ADDRESS"
            )


def at_once(resources: Mapping[str, float], *, what: str) -> int:
    """As many as the cluster's resources allow; on this machine's own Ray, whose CPUs are logical, one a core.

    Raises UserError where not even one fits; what: its name in the message.
    """
    have = dict(ray.cluster_resources())
    if not os.environ.get("RAY_ADDRESS"):
        have["CPU"] = min(have["CPU"], os.cpu_count() or 1)
    fits = min((int(have.get(name, 0) // amount) for name, amount in resources.items() if amount), default=1)
    if fits < 1:
        raise UserError(f"{what} needs {dict(resources)}, the cluster has {have}: join a larger one with RAY_ADDRESS")
    return fits
