"""`compare`: run the cells of a suite within the cluster's resources, and write one report."""

import time
from pathlib import Path

from pft_core.errors import UserError
from pipelines.compare.cell_pool import Result, run_cells
from pipelines.compare.cells import Cell
from pipelines.compare.plan import plan_suite
from pipelines.compare.report import write_comparison
from pipelines.compare.report_builder import assemble
from pipelines.compare.suite import Size, Suite, SuiteSize
from pipelines.compare.suite_data import suite_data
from pipelines.console import console
from pipelines.jobs import ensure_ray, locked, mark_interrupted_workers, num_parallel


def run(suite: Suite, *, size: Size, storage: Path = Path("runs")) -> Result:
    """Run the unfinished cells and write the report. Result: report_json, report_html, tables, cells, failed.

    Raises UserError if the suite names something that the data lacks, and if no cell has finished.
    """
    if size not in suite.sizes:
        raise UserError(f"suite {suite.name!r} has no size {size!r}: choose {' or '.join(suite.sizes)}")
    folder = storage.resolve() / "compare" / suite.name
    started = time.perf_counter()
    with locked(folder):
        ensure_ray(dashboard=True)
        chosen = suite.sizes[size]
        data = suite_data(chosen, storage.resolve() / "compare" / "data")
        plans = plan_suite(suite, chosen, data, storage.resolve() / "compare")
        cells = [cell for plan in plans for cell in plan.cells]
        console.print(f"{suite.name}: {len(cells)} cells on {data.name}")
        results = run_all(cells, chosen)
        report = assemble(suite, size, plans, results, seconds=time.perf_counter() - started)
        paths = write_comparison(report, folder)
    failed = sum("error" in result for result in results)
    return {name: str(path) for name, path in paths.items()} | {"cells": len(cells), "failed": failed}


def run_all(cells: list[Cell], size: SuiteSize) -> list[Result]:
    if not cells:
        return []
    config = cells[0].stages[-1]
    with mark_interrupted_workers(Path(config.storage), config):
        return run_cells(cells, at_once=num_parallel(size.resources, what="a cell"), resources=size.resources)
