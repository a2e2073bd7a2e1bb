"""Messages between the training workers and the driver during a training."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from pft_core.training import MemoryFallback, MemoryUse, TrainSettings, going_on
from pipelines.progress import Relay, Report
from pipelines.train.resolved_run import RunLayers


@dataclass(frozen=True)
class EncodingResult:
    """Result of encoding a run: layers, or the message of a UserError."""

    layers: RunLayers | None = None
    error: str = ""


class Mailbox(Relay):
    """An actor that passes metrics from rank 0 to the driver, so that a step never waits for a tracker.

    Only a checkpoint waits until the driver has written the metrics of its steps, since a run that is killed later does
    not repeat them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._items: list[tuple[int, dict[str, float]]] = []
        self._notes: set[str] = set()
        self._encoded: EncodingResult | None = None
        self._memory: MemoryUse | None = None
        self._has_run_out = False
        self._fault: OSError | None = None
        self._changed = asyncio.Condition()

    async def put_encoded(self, encoded: EncodingResult) -> None:
        async with self._changed:
            self._encoded = encoded
            self._changed.notify_all()

    async def is_encoded(self) -> bool:
        return self._encoded is not None

    async def encoded(self) -> EncodingResult:
        """Wait until the first worker has encoded; return its result."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._encoded is not None)
            assert self._encoded is not None
            return self._encoded

    async def plan(self, memory: MemoryUse) -> None:
        """Store the memory use that an attempt expects; by then every rank has read its memory fallback."""
        self._memory, self._has_run_out = memory, False

    async def planned(self) -> MemoryUse | None:
        return self._memory

    async def report_out_of_memory(self) -> None:
        self._has_run_out = True

    async def memory_fallback(self, train: TrainSettings) -> MemoryFallback:
        """Return the fallback for an attempt: a further one if the last ran out of memory or was likely killed."""
        if self._memory is None:
            return MemoryFallback.PLANNED
        less = self._memory.next(train) if self._has_run_out or self._memory.is_tight else None
        if less is None:
            return self._memory.memory_fallback
        if (note := going_on(self._memory, less)) not in self._notes:  # every rank asks
            self._notes.add(note)
            await self.post(Report("", note))
        return less

    async def put(self, step: int, metrics: dict[str, float]) -> None:
        async with self._changed:
            self._items.append((step, metrics))
            self._changed.notify_all()

    async def take(self, *, num_written: int, wait_s: float) -> list[tuple[int, dict[str, float]]]:
        """Drop the first `num_written` items, which the driver has written; wait for and return the others."""
        async with self._changed:
            del self._items[:num_written]
            self._changed.notify_all()
            await self._until(lambda: bool(self._items), wait_s)
            return list(self._items)

    async def cannot_write(self, fault: OSError) -> None:
        """Record that the driver can no longer write, for example because its disk is full."""
        async with self._changed:
            self._fault = fault
            self._changed.notify_all()

    async def written(self, *, wait_s: float) -> OSError | None:
        """Wait until the driver has written everything, at most `wait_s` seconds; return its error, if any."""
        async with self._changed:
            await self._until(lambda: not self._items or self._fault is not None, wait_s)
            return self._fault

    async def _until(self, condition: Callable[[], bool], wait_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._changed.wait_for(condition)
