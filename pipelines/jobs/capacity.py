"""What the cluster has, and whether that is enough for a job."""

import os
from collections.abc import Mapping

import ray

from pft_core.errors import UserError


def has_gpus() -> bool:
    """Return whether the cluster has GPUs."""
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
                f"{_remedy(setting, name, amount, have)}, or join a larger cluster with RAY_ADDRESS"
            )


def _remedy(setting: str, name: str, amount: float, have: Mapping[str, float]) -> str:
    """Say what helps: with fewer workers where at least one fits, else with a smaller wish for each."""
    if amount <= have.get(name, 0):
        return f"lower {setting} to {int(have[name] // amount)}"
    if name == "GPU":
        return f"set {setting.removesuffix('num_workers')}use_gpu=false"
    if name not in have:
        return f"ask for what it has ({', '.join(sorted(n for n in have if ':' not in n))})"
    return f"ask for at most {have[name]:g} {name} for each"


def at_once(resources: Mapping[str, float], *, what: str) -> int:
    """As many as the cluster's resources allow; on this machine's own Ray, whose CPUs are logical, one a core.

    Raises UserError where not even one fits; what: its name in the message.
    """
    have = dict(ray.cluster_resources())
    if not os.environ.get("RAY_ADDRESS"):
        have["CPU"] = min(have["CPU"], os.cpu_count() or 1)
    fits = min((int(have.get(name, 0) // amount) for name, amount in resources.items() if amount), default=1)
    if fits < 1:
        needs = ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
        has = ", ".join(f"{have.get(name, 0):g} {name}" for name in resources)
        raise UserError(
            f"{what} needs {needs}, the cluster has {has}: ask for less, or join a larger one with RAY_ADDRESS"
        )
    return fits
