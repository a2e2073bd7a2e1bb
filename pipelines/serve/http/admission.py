"""Admission control: how many requests a server answers at once, plus a queue; none once it is stopping.

Ray Serve has a limit of its own, but it counts a request as queued until a replica is assigned, so near the limit it
would reject requests for which there is room.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from pipelines.serve.serve_config import ReplicaSettings

MIN_BODIES = 64  # of one key, even if there are fewer places
RECOUNT_S = 2.0
DRAIN_POLL_S = 0.05


@dataclass(frozen=True)
class Rejection:
    """The rejection of a request: HTTP status, reason label in the metrics, and message to the client."""

    status: Literal[429, 503]
    reason: str
    message: str


FULL = Rejection(429, "overload", "every replica is busy and the queue is full: try again later")
SENDING = Rejection(
    429, "bodies", "too many request bodies are still being received: try again later, and send bodies without pauses"
)
STOPPING = Rejection(503, "stopping", "this server is stopping: try another one, or try again after its restart")


def num_places(scaling: ReplicaSettings, replicas: int) -> int:
    """Return how many requests may be answered or queued at once."""
    return max(1, replicas) * scaling.max_ongoing_requests + scaling.max_queued_requests


def num_bodies(places: int) -> int:
    """Return how many bodies of one key may be received at once; all keys together may have twice as many."""
    return max(MIN_BODIES, places)


class Admission:
    """The places of one server. Each request holds one place, however much work it gives the engines.

    Bodies that are still being received hold no place. They are counted separately, because each of them occupies one
    of Ray's requests.
    """

    def __init__(self, scaling: ReplicaSettings, *, count_replicas: Callable[[], Awaitable[int]] | None = None):
        """count_replicas: returns the number of running replicas; None: it is always min_replicas."""
        self._scaling, self._count_replicas = scaling, count_replicas
        self._replicas, self._counted_at = scaling.min_replicas, 0.0
        self._in_flight, self._stopping = 0, False
        self._bodies: Counter[str] = Counter()  # by the key's name
        self._counting: asyncio.Task[None] | None = None

    def refusal(self) -> Rejection | None:
        """Return why there is no place now, or None if there is one."""
        if self._stopping:
            return STOPPING
        self._recount()
        return FULL if self._in_flight >= num_places(self._scaling, self._replicas) else None

    def body_refusal(self, key: str) -> Rejection | None:
        """Return why no further body of a key may be received now, or None if one may."""
        limit = num_bodies(num_places(self._scaling, self._replicas))
        is_full = self._bodies[key] >= limit or self._bodies.total() >= 2 * limit
        return SENDING if is_full else None

    @contextmanager
    def body(self, key: str) -> Iterator[None]:
        """Count a body as being received; call `body_refusal` first."""
        self._bodies[key] += 1
        try:
            yield
        finally:
            self._bodies[key] -= 1

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place; call `refusal` first."""
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def drain(self) -> None:
        """Admit no further requests, and wait until all admitted ones are answered, at most `drain_s` seconds."""
        self._stopping = True
        end = time.monotonic() + self._scaling.drain_s
        while self._in_flight and time.monotonic() < end:
            await asyncio.sleep(DRAIN_POLL_S)

    def _recount(self) -> None:
        """Start to count the replicas if the last count is old; until it is done, the old count applies."""
        is_due = time.monotonic() - self._counted_at >= RECOUNT_S
        if self._count_replicas is not None and is_due and (self._counting is None or self._counting.done()):
            self._counting = asyncio.create_task(self._count())

    async def _count(self) -> None:
        assert self._count_replicas is not None
        self._counted_at = time.monotonic()
        self._replicas = await self._count_replicas()
