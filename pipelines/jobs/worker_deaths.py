"""Workers that die at work: a few times they are started again, then the job ends with one message.

Left to itself, Ray Data starts them again for ever, also one that the system kills each time for its memory.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pft_core.errors import UserError
from pipelines.jobs.user_errors import unwrap_user_error

MAX_RESTARTS = 3  # a node may die, or a neighbour take the memory for a while


def map_batches(rows: Any, work: Any, *, compute: Any, **options: Any) -> Any:
    """Do as `rows.map_batches`, with workers that are started again a few times only."""
    import ray.data

    is_of_actors = isinstance(compute, ray.data.ActorPoolStrategy)
    names = ("max_restarts", "max_task_retries") if is_of_actors else ("max_retries",)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args`")  # there is no other way to say it
        return rows.map_batches(work, compute=compute, **options, **dict.fromkeys(names, MAX_RESTARTS))


@contextmanager
def deaths_explained(worker: str, **settings: int) -> Iterator[None]:
    """Raise UserError where workers of the block died each time that they were started.

    worker: what the message calls one; settings: those of which less needs less memory, with their values.
    """
    import ray

    try:
        with _without_traces():
            yield
    except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        if getattr(error, "actor_init_failed", False) or unwrap_user_error(error):
            raise  # it has said why
        raise killed_each_time(worker, settings) from None


def killed_each_time(worker: str, settings: Mapping[str, int]) -> UserError:
    """The error of work whose process was killed, without a word of its own, as often as it was started."""
    lower = " or ".join(f"{name}={value}" for name, value in settings.items() if value > 1)
    return UserError(
        f"{worker} was killed at the same work {MAX_RESTARTS + 1} times, most likely for lack of memory: "
        f"{f'lower {lower}, or ' * bool(lower)}give it more memory"
    )


@contextmanager
def _without_traces() -> Iterator[None]:
    # Ray Data prints a page for an error that is none of its own, and then raises it.
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
