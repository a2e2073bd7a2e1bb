"""A data set in parts for training, validation and test, none of which holds a scenario of another."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pft_core.errors import UserError

PARTS = ("train", "validation", "test")


def parts_of(scenarios_N: NDArray[np.uint64], shares: Sequence[float]) -> NDArray[np.int64]:
    """Return the part of each record [N]: scenarios in the order of their hashes, cut at the shares.

    shares: of the scenarios, one for each of `PARTS`. Raises UserError where a part would be empty.
    """
    hashes, scenario_N = np.unique(scenarios_N, return_inverse=True)
    ends = np.rint(np.cumsum(shares) * len(hashes))
    part_N: NDArray[np.int64] = np.searchsorted(ends, scenario_N, side="right")
    for part, name in enumerate(PARTS):
        if not (part_N == part).any():
            given = ",".join(map(str, shares))
            raise UserError(f"parts={given}: {len(hashes)} scenarios leave none for {name}: give more rows, or it more")
    return part_N
