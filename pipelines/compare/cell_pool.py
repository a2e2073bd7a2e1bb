"""Cells on warm Ray actors: as many at once as the resources allow; one that fails does not stop the others."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import ray

from pipelines.compare.cells import NO_SEED, Cell, CellActor, finished
from pipelines.console import console

Result = dict[str, Any]
MAX_FAILURES = 3  # of the worker of one cell; a node may die, and a cell that starts again goes on where it was


def run_cells(cells: Sequence[Cell], *, at_once: int, resources: dict[str, float]) -> list[Result]:
    """Run on warm actors what is not finished; return all results in the cells' order, `error` for one that failed."""
    others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    make = ray.remote(
        num_cpus=resources.get("CPU", 1), num_gpus=resources.get("GPU", 0), resources=others
    )(CellActor).remote  # fmt: skip
    # An actor takes seconds to start: none does for what is finished.
    found = [finished(cell) for cell in cells]
    results = [result or {} for result in found]
    waiting = [(number, cell) for number, cell in enumerate(cells) if found[number] is None]
    if len(waiting) < len(cells):
        console.print(f"{len(cells) - len(waiting)} cells are finished already, their results are used again")
    idle = [make() for _ in range(min(at_once, len(waiting)))]
    running: dict[Any, tuple[int, Any]] = {}
    deaths: Counter[int] = Counter()
    while waiting or running:
        while waiting and idle:
            number, cell = waiting.pop(0)
            actor = idle.pop()
            running[actor.run.remote(cell)] = (number, actor)
        (done,), _ = ray.wait(list(running), num_returns=1)
        number, actor = running.pop(done)
        results[number], alive = outcome_of(done)
        if not alive and deaths[number] < MAX_FAILURES:
            deaths[number] += 1
            waiting.append((number, cells[number]))
        if waiting:
            idle.append(actor if alive else make())
        del actor  # one that has nothing to do gives its place to one that waits for it, on what nodes are left
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
