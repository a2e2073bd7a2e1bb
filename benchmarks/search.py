"""Measure the cost of the paper's grid of 24 cells: one training per cell, one per ratio, soups, or early stopping.

`python -m benchmarks.search --json`. Measures wall-clock seconds on the embedded data. All strategies run the trials of
`pft tune` on the same warm processes, each in a folder of its own; starting Ray and preparing the data are not
measured. A strategy finds the same best ratio if the naive grid's trainings at the ratio it picks reach, on average,
the interval of the best training, measured on the worse pole.
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
    """Return one training for every cell of the grid, even if another cell has the same ratio, and the base."""
    return [SearchPoint(a, b) for a, b in grid_cells(config.search) if a or b] + [SearchPoint(0.0, 0.0, "base")]


def timed(
    config: RunConfig, points: Sequence[SearchPoint], folder: Path, *, stops_early: bool = False
) -> tuple[float, Rows]:
    """Return the seconds to run the points, and their rows. Raises RuntimeError if one fails, since its time is
    meaningless."""
    config = config.model_copy(update={"storage": str(folder / "trials")})
    started = time.monotonic()
    errors = job.try_points(config, points, folder, stops_early=stops_early)
    seconds = time.monotonic() - started
    if errors:
        raise RuntimeError(f"{len(errors)} trials failed: {next(iter(errors.values()))}")
    rows = trial_rows([Trial(config, point, stops_early) for point in points], {})
    harness.say(f"{folder.name}: {seconds:.0f} s for {len(points)} points")
    return seconds, rows


def measure(config: RunConfig, folder: Path) -> dict[str, Any]:
    soups = soup_points(config.search)
    strategies = {
        "naive": timed(config, naive_points(config), folder / "naive"),
        "distinct": timed(config, grid_points(config.search), folder / "distinct"),
        "soup": timed(config, soups, folder / "soup"),
        "asha": timed(config, job.points_of(config, "asha"), folder / "asha", stops_early=True),
    }
    verify_s, real = timed(config, verification_points(soups, config.search.verify), folder / "verify")
    rows = {name: strategy_rows for name, (_, strategy_rows) in strategies.items()}
    report = folder / "report.json"
    write_json(report, {**rows, "verify": real})
    result: dict[str, Any] = {f"{name}_s": round(seconds, 1) for name, (seconds, _) in strategies.items()}
    result |= {"verify_s": round(verify_s, 1), "report": str(report), **agreement(rows)}
    return result | {f"{name}_of_naive": round(strategies[name][0] / strategies["naive"][0], 3) for name in rows}


def agreement(strategies: Mapping[str, Rows]) -> dict[str, Any]:
    """Return same_best, each strategy's best share of the first side, and the largest difference within a ratio."""
    naive = trained(strategies["naive"])
    best = max(naive, key=lambda row: row[METRIC])
    picks = {name: pick(rows, METRIC) for name, rows in strategies.items()}
    shares = {name: share_of(pick["alpha"], pick["beta"]) for name, pick in picks.items() if pick}
    by_share: dict[float, list[float]] = {}
    for row in naive:
        by_share.setdefault(share_of(row["alpha"], row["beta"]), []).append(row[METRIC])
    low, _ = best["intervals"][METRIC]
    same = {name: statistics.mean(by_share[share]) >= low for name, share in shares.items()}
    return {
        "same_best": len(same) == len(strategies) and all(same.values()),
        "best_share": shares,
        "best_worse_pole": {
            name: rows[pick["trial"]][METRIC] for name, rows in strategies.items() if (pick := picks[name])
        },
        "largest_difference_at_one_ratio": round(max(max(v) - min(v) for v in by_share.values()), 4),
    }


def trained(rows: Rows) -> Rows:
    return list(candidates(rows).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="Print one JSON object as the last line of stdout.")
    parser.add_argument("--folder", type=Path, help="Folder for runs and report; default: a new temporary folder.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Overrides of the quickstart recipe.")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="pft-search-"))
    if folder.is_dir() and any(folder.iterdir()):
        parser.error(f"{folder} is not empty: finished runs there would not run again; use an empty folder")
    ensure_ray()
    config = job.in_place(load_config("quickstart", [*arguments.overrides, f"storage={folder}"]))
    harness.finish(measure(config, folder.resolve()) | harness.machine(), as_json=arguments.json)


if __name__ == "__main__":
    main()
