"""Split a data set into training, validation and test parts that share no scenario."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pft_core.errors import UserError

PARTS = ("train", "validation", "test")  # the folders that a split data set is written to


def parts_of(scenarios_N: NDArray[np.uint64], shares: Sequence[float]) -> NDArray[np.int64]:
    """Return the part of each record [N]: scenarios are ordered by hash and cut at the shares.

    shares: share of the scenarios in each of `PARTS`. Raises UserError if a part would be empty.
    """
    hashes, scenario_N = np.unique(scenarios_N, return_inverse=True)
    ends = np.rint(np.cumsum(shares) * len(hashes))
    part_N: NDArray[np.int64] = np.searchsorted(ends, scenario_N, side="right")
    for part, name in enumerate(PARTS):
        if not (part_N == part).any():
            text = ",".join(map(str, shares))
            raise UserError(
                f"parts={text}: {len(hashes)} scenarios leave none for {name}: raise its share, or add rows"
            )
    return part_N
