"""How many jobs of a kind fit onto the cluster at once."""

import os
from collections.abc import Mapping

import ray

from pft_core.errors import UserError


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
