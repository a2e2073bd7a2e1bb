"""What it takes to answer the 24 cells of the paper's grid: one training a cell, one a ratio, soups, early stopping.

`python -m benchmarks.search --json`. Wall-clock seconds on the embedded data, by the same trials of `pft tune` on the
same warm processes, each way in a folder of its own; Ray's start and the data are made beforehand. A way has the same
best ratio where, in the naive grid, the trainings of the ratio that it picks reach, on the mean, the interval of the
best one's worse pole.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from pft_core.files import write_json
from pipelines.config import RunConfig, load_config
from pipelines.jobs import ensure_ray
from pipelines.tune import (
    SearchPoint,
    Trial,
    TrialRow,
    candidates,
    grid_cells,
    grid_points,
    job,
    pick,
    share_of,
    soup_points,
    trial_rows,
    verification_points,
)

METRIC = "worse_pole"
Rows = Sequence[TrialRow]


def naive_points(config: RunConfig) -> list[SearchPoint]:
    """A training for every cell of the grid, also where another cell has the same ratio."""
    return [SearchPoint(a, b) for a, b in grid_cells(config.search) if a or b] + [SearchPoint(0.0, 0.0, "base")]


def timed(
    config: RunConfig, points: Sequence[SearchPoint], folder: Path, *, stops_early: bool = False
) -> tuple[float, Rows]:
    """Seconds to run the points, and their rows. Raises RuntimeError where one has failed: its time says nothing."""
    config = config.model_copy(update={"storage": str(folder / "trials")})
    begun = time.monotonic()
    errors = job.try_points(config, points, folder, stops_early=stops_early)
    seconds = time.monotonic() - begun
    if errors:
        raise RuntimeError(f"{len(errors)} trials failed: {next(iter(errors.values()))}")
    rows = trial_rows([Trial(config, point, stops_early) for point in points], {})
    harness.say(f"{folder.name}: {seconds:.0f} s for {len(points)} points")
    return seconds, rows


def measure(config: RunConfig, folder: Path) -> dict[str, Any]:
    soups = soup_points(config.search)
    ways = {
        "naive": timed(config, naive_points(config), folder / "naive"),
        "distinct": timed(config, grid_points(config.search), folder / "distinct"),
        "soup": timed(config, soups, folder / "soup"),
        "asha": timed(config, job.points_of(config, "asha"), folder / "asha", stops_early=True),
    }
    verify_s, real = timed(config, verification_points(soups, config.search.verify), folder / "verify")
    rows = {name: found for name, (_, found) in ways.items()}
    report = folder / "report.json"
    write_json(report, {**rows, "verify": real})
    result: dict[str, Any] = {f"{name}_s": round(seconds, 1) for name, (seconds, _) in ways.items()}
    result |= {"verify_s": round(verify_s, 1), "report": str(report), **agreement(rows)}
    return result | {f"{name}_of_naive": round(ways[name][0] / ways["naive"][0], 3) for name in rows}


def agreement(ways: Mapping[str, Rows]) -> dict[str, Any]:
    """same_best, each way's best share of the first side, and how far cells of one ratio are apart."""
    naive = trained(ways["naive"])
    best = max(naive, key=lambda row: row[METRIC])
    picks = {name: pick(rows, METRIC) for name, rows in ways.items()}
    shares = {name: share_of(pick["alpha"], pick["beta"]) for name, pick in picks.items() if pick}
    by_share: dict[float, list[float]] = {}
    for row in naive:
        by_share.setdefault(share_of(row["alpha"], row["beta"]), []).append(row[METRIC])
    low, _ = best["intervals"][METRIC]
    same = {name: statistics.mean(by_share[share]) >= low for name, share in shares.items()}
    return {
        "same_best": len(same) == len(ways) and all(same.values()),
        "best_share": shares,
        "best_worse_pole": {name: rows[pick["trial"]][METRIC] for name, rows in ways.items() if (pick := picks[name])},
        "largest_difference_at_one_ratio": round(max(max(v) - min(v) for v in by_share.values()), 4),
    }


def trained(rows: Rows) -> Rows:
    return list(candidates(rows).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
    parser.add_argument("--folder", type=Path, help="where runs and report stay; a new temporary folder unless given")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the quickstart recipe")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="pft-search-"))
    if folder.is_dir() and any(folder.iterdir()):
        parser.error(f"{folder} is not empty: what has finished there would not be run again, and take no time")
    ensure_ray()
    config = job.in_place(load_config("quickstart", [*arguments.overrides, f"storage={folder}"]))
    harness.finish(measure(config, folder.resolve()) | harness.machine(), as_json=arguments.json)


if __name__ == "__main__":
    main()
