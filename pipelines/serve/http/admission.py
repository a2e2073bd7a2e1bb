"""How many requests a server answers at once: what its replicas take on, and a queue; none once it is to stop.

Ray Serve has such a limit of its own, but counts a request as queued until it is assigned: near the limit it sends
clients away for whom there is room.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from pipelines.serve.serve_config import ReplicaSettings

LEAST_BODIES = 64  # of one key, where there are fewer places
RECOUNT_S = 2.0
STILL_S = 0.05  # between looks whether the last request is answered


@dataclass(frozen=True)
class Rejection:
    """Why a request is sent away: the HTTP status, the reason in metrics, and what the client is told."""

    status: Literal[429, 503]
    reason: str
    message: str


FULL = Rejection(429, "overload", "every replica is busy and the queue is full: come back later")
SENDING = Rejection(
    429, "bodies", "too many requests are still on their way here: come back later, and send them whole"
)
STOPPING = Rejection(503, "stopping", "this server stops: ask another, or this one once it is back")


def num_places(scaling: ReplicaSettings, replicas: int) -> int:
    """Return how many requests may be answered, or wait, at once."""
    return max(1, replicas) * scaling.max_ongoing_requests + scaling.max_queued_requests


def num_bodies(places: int) -> int:
    """Return how many bodies of one key may be on their way at once; of all keys together, twice as many."""
    return max(LEAST_BODIES, places)


class Admission:
    """The places of one server. One request holds one place, however much it asks of the engines.

    Bodies that are still on their way hold none, but each holds a request of Ray's, so that they are counted too.
    """

    def __init__(self, scaling: ReplicaSettings, *, count_replicas: Callable[[], Awaitable[int]] | None = None):
        """count_replicas: how many run by now, where the number may change; None: min_replicas."""
        self._scaling, self._count_replicas = scaling, count_replicas
        self._replicas, self._counted_at = scaling.min_replicas, 0.0
        self._in_flight, self._stopping = 0, False
        self._bodies: Counter[str] = Counter()  # by the key's name
        self._counting: asyncio.Task[None] | None = None

    def refusal(self) -> Rejection | None:
        """Return why there is no place now; None where there is one."""
        if self._stopping:
            return STOPPING
        self._recount()
        return FULL if self._in_flight >= num_places(self._scaling, self._replicas) else None

    def body_refusal(self, key: str) -> Rejection | None:
        """Return why a key's body is not waited for now; None where it is."""
        most = num_bodies(num_places(self._scaling, self._replicas))
        is_full = self._bodies[key] >= most or self._bodies.total() >= 2 * most
        return SENDING if is_full else None

    @contextmanager
    def body(self, key: str) -> Iterator[None]:
        """Count a body as on its way, which `body_refusal` has just let in."""
        self._bodies[key] += 1
        try:
            yield
        finally:
            self._bodies[key] -= 1

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place, which `refusal` has just said to be there."""
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def drain(self) -> None:
        """Let nobody in any more, and wait until those who are in have their answers, at most `drain_s`."""
        self._stopping = True
        end = time.monotonic() + self._scaling.drain_s
        while self._in_flight and time.monotonic() < end:
            await asyncio.sleep(STILL_S)

    def _recount(self) -> None:
        """Count the replicas now and then, while requests go on being answered by what was counted before."""
        is_due = time.monotonic() - self._counted_at >= RECOUNT_S
        if self._count_replicas is not None and is_due and (self._counting is None or self._counting.done()):
            self._counting = asyncio.create_task(self._count())

    async def _count(self) -> None:
        assert self._count_replicas is not None
        self._counted_at = time.monotonic()
        self._replicas = await self._count_replicas()
