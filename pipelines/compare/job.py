"""`compare`: run a suite's cells within the cluster's resources, and write one report of them."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from pft_core.artifacts import DatasetManifest, digest
from pft_core.errors import UserError
from pft_core.evaluation.tasks import Outcome
from pft_core.preferences import PreferenceSpace
from pft_core.toyworld.base import SHIPPED_BASE
from pipelines.compare.cells import Cell, CellActor
from pipelines.compare.data import SuiteData, read_records, subset, suite_data
from pipelines.compare.methods import METHODS
from pipelines.compare.rows import Found, corrected, refuse_other_items, rows_of, tests_against
from pipelines.compare.suite import Size, Suite, SuiteSize, Variant, run_config
from pipelines.config import RunConfig
from pipelines.console import console
from pipelines.encode import ensure_layer
from pipelines.jobs import ensure_ray, locked
from pipelines.objective import axis_names, objective_of
from pipelines.tracking import read_metrics

Result = dict[str, Any]
NO_SEED = -1  # of methods that a seed does not change


def run(suite: Suite, *, size: Size, storage: Path = Path("runs")) -> Result:
    """Run what is not finished yet, and write the report. Result: report_json, report_html, tables, failed cells.

    Raises UserError for what the suite names and the data does not hold, and where nothing at all has finished.
    """
    if size not in suite.sizes:
        raise UserError(f"suite {suite.name!r} has no size {size!r}: it has {', '.join(suite.sizes)}")
    folder = storage.resolve() / "compare" / suite.name
    started = time.perf_counter()
    with locked(folder):
        ensure_ray()
        chosen = suite.sizes[size]
        data = suite_data(chosen, storage.resolve() / "compare" / "data", seed=0)
        plan = plan_cells(suite, chosen, data, storage.resolve() / "compare")
        console.print(f"{suite.name}: {len(plan)} cells on {data.name}")
        results = run_cells(plan, at_once=cells_at_once(chosen), resources=chosen.resources)
        report = assemble(suite, size, data, plan, results, seconds=time.perf_counter() - started)
        paths = write_comparison(report, folder)
    failed = sum("error" in result for result in results)
    return {name: str(path) for name, path in paths.items()} | {"cells": len(plan), "failed": failed}


def plan_cells(suite: Suite, size: SuiteSize, data: SuiteData, storage: Path) -> list[Cell]:
    """Every method, seed and variant that a model has a part in, its data cut and encoded."""
    base = base_model(size, data, storage)
    cells = []
    for variant in suite.variants or [None]:
        train, validation, test = variant_data(variant, data, storage / "data")
        for name in suite.methods:
            method = METHODS[name]
            if method.asked in ("position", "bag_of_words"):
                continue
            for seed in size.seeds if method.seeded else [NO_SEED]:
                stages = stage_configs(suite, size, name, seed, variant, train=train, base=base, storage=storage)
                layers = tuple(layer_of(config) for config in stages) if method.stages else ()
                cells.append(
                    Cell(
                        name, method, seed, variant, stages, layers, str(validation), str(test),
                        tuple(size.forms), size.test_per_axis, size.resources.get("GPU", 0) > 0,
                    )  # fmt: skip
                )
    return cells


def stage_configs(
    suite: Suite,
    size: SuiteSize,
    name: str,
    seed: int,
    variant: Variant | None,
    *,
    train: Path,
    base: str,
    storage: Path,
) -> tuple[RunConfig, ...]:
    """The run config of each stage of a method: the suite's, changed by the stage, the size, and the variant."""
    fixed = {
        "name": name.replace(":", "-"),
        "data": str(train),
        "model": base,
        "seed": max(seed, 0),
        "storage": str(storage / "cells"),
        "tracking.experiment": f"compare/{suite.name}",
    }
    own = size.of_method.get(name, {})
    return tuple(
        run_config(size.run, [stage, own, variant.set if variant else {}, fixed])
        for stage in METHODS[name].stages or ({},)
    )


def variant_data(variant: Variant | None, data: SuiteData, storage: Path) -> tuple[Path, Path, Path]:
    """The folders of train, validation and test records of a variant."""
    if variant is None:
        return data.train, data.validation, data.test
    key = digest([data.name, DatasetManifest.load(data.train).data_digest, variant.axes, variant.train_size])
    train = subset(data.train, storage / f"train-{key}", axes=variant.axes, num_records=variant.train_size)
    validation = subset(data.validation, storage / f"validation-{key}", axes=variant.axes, num_records=None)
    return train, validation, subset(data.test, storage / f"test-{key}", axes=variant.axes, num_records=None)


def layer_of(config: RunConfig) -> str:
    """Encode the training data for this run, or find it encoded."""
    axes = axis_names(DatasetManifest.load(Path(str(config.data))).space)
    layer = ensure_layer(
        Path(str(config.data)),
        model=str(config.model),
        prompt=config.prompt,
        encoding=config.encoding,
        max_reject_fraction=config.max_reject_fraction,
        concurrency=1,
        view=objective_of(config.train, axes).view,
    )
    return str(layer)


def base_model(size: SuiteSize, data: SuiteData, storage: Path) -> str:
    """The model that every method starts from."""
    if size.base == "toyworld" or (size.base == "text" and data.name == "toyworld"):
        return str(SHIPPED_BASE)
    if size.base != "text":
        return size.base
    return str(text_base(data, size, storage))


def cells_at_once(size: SuiteSize) -> int:
    """As many as the cluster's resources allow; on this machine's own Ray, whose CPUs are logical, one a core."""
    have = dict(ray.cluster_resources())
    if not os.environ.get("RAY_ADDRESS"):
        have["CPU"] = min(have["CPU"], os.cpu_count() or 1)
    fits = [int(have.get(name, 0) // amount) for name, amount in size.resources.items() if amount]
    if min(fits, default=1) < 1:
        raise UserError(f"a cell needs {size.resources}, the cluster has {have}: join a larger one with RAY_ADDRESS")
    return min(fits, default=1)


def run_cells(cells: Sequence[Cell], *, at_once: int, resources: dict[str, float]) -> list[Result]:
    """Run the cells on warm actors; return their results in the order of the cells, `error` for one that failed."""
    others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    make = ray.remote(
        num_cpus=resources.get("CPU", 1), num_gpus=resources.get("GPU", 0), resources=others
    )(CellActor).remote  # fmt: skip
    idle = [make() for _ in range(min(at_once, len(cells)))]
    results: list[Result] = [{} for _ in cells]
    waiting, running = list(enumerate(cells)), {}
    while waiting or running:
        while waiting and idle:
            number, cell = waiting.pop(0)
            actor = idle.pop()
            running[actor.run.remote(cell)] = (number, actor)
        (done,), _ = ray.wait(list(running), num_returns=1)
        number, actor = running.pop(done)
        results[number], alive = outcome_of(done)
        idle.append(actor if alive else make())
        console.print(progress_line(cells[number], results[number], left=len(waiting) + len(running)), highlight=False)
    return results


def outcome_of(done: Any) -> tuple[Result, bool]:
    """The result of a finished call, and whether its actor can go on."""
    try:
        return ray.get(done), True
    except ray.exceptions.RayActorError as error:
        return {"error": f"the worker died: {str(error).splitlines()[0]}"}, False


def progress_line(cell: Cell, result: Result, *, left: int) -> str:
    variant = "" if cell.variant is None else f" {cell.variant.value}"
    seed = "" if cell.seed == NO_SEED else f" seed {cell.seed}"
    return f"{cell.name}{variant}{seed}: {result.get('error', 'finished')} ({left} to go)"


def assemble(
    suite: Suite, size: Size, data: SuiteData, cells: Sequence[Cell], results: Sequence[Result], *, seconds: float
) -> dict[str, Any]:
    """Put what the cells found into one report. Raises UserError where nothing has finished, or digests differ."""
    refuse_mixed_digests(cells, results)
    rows: list[dict[str, Any]] = []
    tests: list[dict[str, Any]] = []
    for variant in suite.variants or [None]:
        found = found_of(suite, size, variant, data, cells, results)
        refuse_other_items(found)
        space = DatasetManifest.load(test_of(variant, cells)).space
        rows += [row for f in found for row in rows_of(f, space, suite.metrics)]
        reference = [f for f in found if f.method == suite.reference]
        tests += tests_against(reference[0], [f for f in found if f.method != suite.reference], space) if reference else []
    rows += rate_rows(cells, results) if "pairs_per_s" in suite.metrics else []
    return {
        "suite": suite.name,
        "title": suite.title,
        "size": size,
        "captions": captions(suite, size, data),
        "rows": rows,
        "tests": corrected(tests),
        "curves": [curve(cell, result) for cell, result in zip(cells, results, strict=True) if has_curve(cell, result)],
        "runs": [run_line(cell, result) for cell, result in zip(cells, results, strict=True)],
        "timings": {"total": seconds},
        "config": suite.model_dump(),
        "digests": {"code": code_digest(), "commit": commit()},
    }
