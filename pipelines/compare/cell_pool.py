"""Run cells on warm Ray actors, as many at once as resources allow; a failed cell does not stop the others."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import ray

from pipelines.compare.cells import Cell, CellActor, stored_result
from pipelines.console import console
from pipelines.progress import receiving, stage

Result = dict[str, Any]
MAX_FAILURES = 3  # of one cell's worker; a node may die, and a restarted cell resumes


def run_cells(cells: Sequence[Cell], *, at_once: int, resources: dict[str, float]) -> list[Result]:
    """Run the unfinished cells; return all results in the cells' order, with key `error` for a failed one."""
    # An actor takes seconds to start, so finished cells need none.
    results = [stored_result(cell) or {} for cell in cells]
    waiting = [(number, cell) for number, cell in enumerate(cells) if not results[number]]
    if num_finished := len(cells) - len(waiting):
        console.print(f"{num_finished} cells have finished already; their results are reused")
    if not waiting:
        return results
    others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    remote = ray.remote(num_cpus=resources.get("CPU", 1), num_gpus=resources.get("GPU", 0), resources=others)
    with receiving() as relay, stage("compare", len(cells)) as advance:
        make = partial(remote(CellActor).remote, relay)
        for number, result, left in run_waiting(waiting, make, at_once=at_once):
            results[number] = result
            console.print(progress_line(cells[number], result, left=left), highlight=False)
            advance(len(cells) - left)
    return results


def run_waiting(
    waiting: list[tuple[int, Cell]], make: Callable[[], Any], *, at_once: int
) -> Iterator[tuple[int, Result, int]]:
    """Run cells on actors; yield the number and result of each that ends, and how many are left.

    A cell whose actor died is run again, and yielded again.
    """
    idle = [make() for _ in range(min(at_once, len(waiting)))]
    running: dict[Any, tuple[tuple[int, Cell], Any]] = {}
    deaths: Counter[int] = Counter()
    while waiting or running:
        while waiting and idle:
            cell, actor = waiting.pop(0), idle.pop()
            running[actor.run.remote(cell[1])] = (cell, actor)
        (done,), _ = ray.wait(list(running), num_returns=1)
        cell, actor = running.pop(done)
        result, alive = outcome_of(done)
        if not alive and deaths[cell[0]] < MAX_FAILURES:
            deaths[cell[0]] += 1
            waiting.append(cell)
        if waiting:
            idle.append(actor if alive else make())
        del actor  # an idle actor frees its resources for one that is waiting, on the nodes that are left
        yield cell[0], result, len(waiting) + len(running)


def outcome_of(done: Any) -> tuple[Result, bool]:
    """Return the result of a finished call, and whether its actor is still alive."""
    try:
        return ray.get(done), True
    except ray.exceptions.RayActorError as error:
        return {"error": f"the worker died: {str(error).splitlines()[0]}"}, False


def progress_line(cell: Cell, result: Result, *, left: int) -> str:
    return f"{cell.title}: {result.get('error', 'finished')} ({left} to go)"
