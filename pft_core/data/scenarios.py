"""Which scenarios a data set holds, as hashes: what tells whether a policy is tested on what it was trained on."""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pft_core.data.manifest import DatasetManifest
from pft_core.files import digest, whole_file

SCENARIOS_NAME = "trained_scenarios.npy"


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


def scenarios_of(data: Path, manifest: DatasetManifest) -> NDArray[np.uint64]:
    """Return the hashes of the different scenarios of a data set, in rising order."""
    return np.unique(scenarios_and_axes(data, manifest)[0])


def count_shared_scenarios(
    trained: tuple[Path, DatasetManifest], tested: tuple[Path, DatasetManifest]
) -> tuple[int, int]:
    """Return how many scenarios of the second data set are in the first as well, and how many it has."""
    scenarios = scenarios_of(*tested)
    return len(np.intersect1d(scenarios_of(*trained), scenarios, assume_unique=True)), len(scenarios)


def write_trained_scenarios(run_dir: Path, scenarios: NDArray[np.uint64]) -> None:
    """Keep beside a policy the hashes of what it was trained on, so that a test can be compared wherever it runs."""
    with whole_file(run_dir / SCENARIOS_NAME) as path:
        np.save(path, scenarios, allow_pickle=False)


def read_trained_scenarios(run_dir: Path) -> NDArray[np.uint64] | None:
    """Return what `write_trained_scenarios` kept; None where nothing was, as by older versions."""
    path = run_dir / SCENARIOS_NAME
    return np.load(path, allow_pickle=False) if path.is_file() else None
