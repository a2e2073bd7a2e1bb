"""Hashes of a data set's scenarios, which show whether a policy is tested on its own training scenarios."""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pft_core.data.manifest import DatasetManifest
from pft_core.files import digest, whole_file

SCENARIOS_NAME = "trained_scenarios.npy"  # in a run: digests of the scenarios it was trained on


def scenarios_and_axes(data: Path, manifest: DatasetManifest) -> tuple[NDArray[np.uint64], NDArray[np.str_]]:
    """Return a hash of each record's scenario [N] and its axis [N], in order. White space and case do not count."""
    hashes: list[int] = []
    axes: list[str] = []
    for shard in manifest.shards:
        columns = pq.read_table(data / shard.path, columns=["scenario", "axis"])
        scenarios = pc.utf8_lower(columns["scenario"]).to_pylist()
        hashes += [int(digest([" ".join(scenario.split())])[:16], 16) for scenario in scenarios]
        axes += columns["axis"].to_pylist()
    return np.array(hashes, dtype=np.uint64), np.array(axes)


def scenarios_of(data: Path, manifest: DatasetManifest) -> NDArray[np.uint64]:
    """Return the hashes of a data set's distinct scenarios, in ascending order."""
    return np.unique(scenarios_and_axes(data, manifest)[0])


def count_shared_scenarios(
    trained: tuple[Path, DatasetManifest], tested: tuple[Path, DatasetManifest]
) -> tuple[int, int]:
    """Return the number of test scenarios that are also training scenarios, and the number of test scenarios."""
    scenarios = scenarios_of(*tested)
    return len(np.intersect1d(scenarios_of(*trained), scenarios, assume_unique=True)), len(scenarios)


def write_trained_scenarios(run_dir: Path, scenarios: NDArray[np.uint64]) -> None:
    """Write the hashes of a policy's training scenarios beside it, so that an evaluation anywhere can compare."""
    with whole_file(run_dir / SCENARIOS_NAME) as path:
        np.save(path, scenarios, allow_pickle=False)


def read_trained_scenarios(run_dir: Path) -> NDArray[np.uint64] | None:
    """Return the hashes that `write_trained_scenarios` wrote; None for a policy of an older version, without them."""
    path = run_dir / SCENARIOS_NAME
    return np.load(path, allow_pickle=False) if path.is_file() else None
