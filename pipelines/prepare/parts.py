"""A data set in parts for training, validation and test, none of which holds a scenario of another."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pft_core.data import DatasetManifest
from pft_core.errors import UserError
from pft_core.files import digest

PARTS = ("train", "validation", "test")


def scenarios_and_axes(data: Path, manifest: DatasetManifest) -> tuple[NDArray[np.uint64], NDArray[np.str_]]:
    """Return a hash of each record's scenario [N], white space and case aside, and its axis [N], in order."""
    hashes: list[int] = []
    axes: list[str] = []
    for shard in manifest.shards:
        columns = pq.read_table(data / shard.path, columns=["scenario", "axis"])
        scenarios = pc.utf8_lower(columns["scenario"]).to_pylist()
        hashes += [int(digest([" ".join(scenario.split())])[:16], 16) for scenario in scenarios]
        axes += columns["axis"].to_pylist()
    return np.array(hashes, dtype=np.uint64), np.array(axes)


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
