"""Run cells on warm Ray actors, as many at once as resources allow; a failed cell does not stop the others."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import ray

from pipelines.compare.cells import NO_SEED, Cell, CellActor, stored_result
from pipelines.console import console

Result = dict[str, Any]
MAX_FAILURES = 3  # of one cell's worker; a node may die, and a restarted cell resumes


def run_cells(cells: Sequence[Cell], *, at_once: int, resources: dict[str, float]) -> list[Result]:
    """Run the unfinished cells; return all results in the cells' order, with key `error` for a failed one."""
    others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    make = ray.remote(
        num_cpus=resources.get("CPU", 1), num_gpus=resources.get("GPU", 0), resources=others
    )(CellActor).remote  # fmt: skip
    # An actor takes seconds to start, so finished cells need none.
    stored = [stored_result(cell) for cell in cells]
    results = [result or {} for result in stored]
    waiting = [(number, cell) for number, cell in enumerate(cells) if stored[number] is None]
    if len(waiting) < len(cells):
        console.print(f"{len(cells) - len(waiting)} cells have finished already; their results are reused")
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
        del actor  # an idle actor frees its resources for one that is waiting, on the nodes that are left
        console.print(progress_line(cells[number], results[number], left=len(waiting) + len(running)), highlight=False)
    return results


def outcome_of(done: Any) -> tuple[Result, bool]:
    """Return the result of a finished call, and whether its actor is still alive."""
    try:
        return ray.get(done), True
    except ray.exceptions.RayActorError as error:
        return {"error": f"the worker died: {str(error).splitlines()[0]}"}, False


def progress_line(cell: Cell, result: Result, *, left: int) -> str:
    variant = "" if cell.variant is None else f" {cell.variant.value}"
    seed = "" if cell.seed == NO_SEED else f" seed {cell.seed}"
    return f"{cell.name}{variant}{seed}: {result.get('error', 'finished')} ({left} to go)"
