"""Restart workers that die a few times, then end the job with one message.

By default, Ray Data restarts a worker forever, even one that the system kills each time for its memory use.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pft_core.errors import UserError
from pipelines.jobs.user_errors import unwrap_user_error

MAX_RESTARTS = 3  # a node may die, or another process may take the memory for a while


def map_batches(rows: Any, work: Any, *, compute: Any, **options: Any) -> Any:
    """Call `rows.map_batches` with workers that are restarted at most MAX_RESTARTS times."""
    import ray.data

    is_of_actors = isinstance(compute, ray.data.ActorPoolStrategy)
    names = ("max_restarts", "max_task_retries") if is_of_actors else ("max_retries",)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args`")  # there is no other way to set it
        return rows.map_batches(work, compute=compute, **options, **dict.fromkeys(names, MAX_RESTARTS))


@contextmanager
def explain_deaths(worker: str, **settings: int) -> Iterator[None]:
    """Raise UserError if the workers of the block died after every restart.

    worker: name of a worker in the message. settings: keys and values that can be lowered to save memory.
    """
    import ray

    try:
        with _without_traces():
            yield
    except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        if getattr(error, "actor_init_failed", False) or unwrap_user_error(error):
            raise  # the error already says why
        raise repeated_deaths_error(worker, settings) from None


def repeated_deaths_error(worker: str, settings: Mapping[str, int]) -> UserError:
    """Return the error for work whose process was killed at every attempt, without a message of its own."""
    lower = " or ".join(f"{name}={value}" for name, value in settings.items() if value > 1)
    return UserError(
        f"{worker} was killed during the same work {MAX_RESTARTS + 1} times, most likely for lack of memory: "
        f"{f'lower {lower}, or ' * bool(lower)}give it more memory"
    )


@contextmanager
def _without_traces() -> Iterator[None]:
    # Ray Data prints a page about an error from user code, and then raises it.
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
