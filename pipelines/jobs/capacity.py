"""Resources of the cluster, and whether they are enough for a job."""

import math
import os
from collections.abc import Mapping

import ray

from pft_core.errors import UserError


def has_gpus() -> bool:
    """Return whether the cluster has GPUs."""
    return float(ray.cluster_resources().get("GPU", 0)) > 0


def fair_threads(num_workers: int) -> int:
    """Return the CPU threads for each of the workers: the cores of the smallest node over the workers on a node.

    Without Ray, or with one that was started here and counts logical CPUs, these are the cores of this machine.
    """
    joined = ray.is_initialized() and os.environ.get("RAY_ADDRESS")
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]] if joined else []
    cpus = [number for number in nodes if number > 0]
    cores = min(cpus, default=os.cpu_count() or 1)
    return max(1, int(cores // math.ceil(num_workers / max(1, len(cpus)))))


def refuse_missing_resources(setting: str, number: int, each: Mapping[str, float]) -> None:
    """Raise UserError, instead of waiting forever, if the cluster is too small for this number of workers.

    setting: config key of the number. each: resources of one worker.
    """
    have = ray.cluster_resources()
    for name, amount in each.items():
        if number * amount > have.get(name, 0):
            raise UserError(
                f"{setting}={number} needs {number * amount:g} {name}, but the cluster has {have.get(name, 0):g}: "
                f"{_remedy(setting, name, amount, have)}, or join a larger cluster with RAY_ADDRESS"
            )


def _remedy(setting: str, name: str, amount: float, have: Mapping[str, float]) -> str:
    """Return what to do: use fewer workers if at least one fits, else request less for each."""
    if amount <= have.get(name, 0):
        return f"lower {setting} to {int(have[name] // amount)}"
    if name == "GPU":
        section = setting.removesuffix("num_workers")
        return f"set {section}use_gpu=false" if section else "add --no-use-gpu"
    if name not in have:
        return f"request a resource that it has ({', '.join(sorted(n for n in have if ':' not in n))})"
    return f"request at most {have[name]:g} {name} for each worker"


def num_parallel(resources: Mapping[str, float], *, what: str) -> int:
    """Return how many workers with these resources the cluster can run at once.

    A Ray that was started here has logical CPUs; it runs one worker per core. what: name of a worker in the message.
    Raises UserError if not even one fits.
    """
    have = dict(ray.cluster_resources())
    if not os.environ.get("RAY_ADDRESS"):
        have["CPU"] = min(have["CPU"], os.cpu_count() or 1)
    fits = min((int(have.get(name, 0) // amount) for name, amount in resources.items() if amount), default=1)
    if fits < 1:
        needs = ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
        has = ", ".join(f"{have.get(name, 0):g} {name}" for name in resources)
        raise UserError(
            f"{what} needs {needs}, but the cluster has {has}: request less, or join a larger cluster with RAY_ADDRESS"
        )
    return fits
