"""What goes between the training workers and the driver while they train."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from pft_core.training import MemoryFallback, MemoryUse, TrainSettings, going_on
from pipelines.train.resolved_run import RunLayers


@dataclass(frozen=True)
class EncodingResult:
    """What the encoding of a run came to: layers, or the mistake that there are none for; notes: what to tell."""

    layers: RunLayers | None = None
    mistake: str = ""
    notes: tuple[str, ...] = ()


class Mailbox:
    """An actor that carries metrics from rank 0 to the driver: the step path neither waits nor touches a tracker.

    Only a checkpoint waits until the driver has written the metrics of the steps it holds: killed after it, a run
    never repeats those steps.
    """

    def __init__(self) -> None:
        self._items: list[tuple[int, dict[str, float]]] = []
        self._notes: list[str] = []
        self._encoded: EncodingResult | None = None
        self._memory: MemoryUse | None = None
        self._has_run_out = False
        self._fault: OSError | None = None
        self._changed = asyncio.Condition()

    async def tell_encoded(self, encoded: EncodingResult) -> None:
        async with self._changed:
            self._encoded = encoded
            self._notes += encoded.notes
            self._changed.notify_all()

    async def is_encoded(self) -> bool:
        return self._encoded is not None

    async def encoded(self) -> EncodingResult:
        """Wait until the first worker has encoded, and return what came of it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._encoded is not None)
            assert self._encoded is not None
            return self._encoded

    async def plan(self, memory: MemoryUse) -> None:
        """Hear what memory an attempt expects to need: every rank has asked for its frugality by then."""
        self._memory, self._has_run_out = memory, False

    async def planned(self) -> MemoryUse | None:
        return self._memory

    async def run_out(self) -> None:
        self._has_run_out = True

    async def memory_fallback(self, train: TrainSettings) -> MemoryFallback:
        """What the next attempt does to spare memory: more, where the one before has run out, or was likely killed."""
        if self._memory is None:
            return MemoryFallback.PLANNED
        less = self._memory.next(train) if self._has_run_out or self._memory.is_tight else None
        if less is None:
            return self._memory.memory_fallback
        if (note := going_on(self._memory, less)) not in self._notes:
            self._notes.append(note)
        return less

    async def notes(self) -> list[str]:
        """What to tell the user, from the first on."""
        return self._notes

    async def put(self, step: int, metrics: dict[str, float]) -> None:
        async with self._changed:
            self._items.append((step, metrics))
            self._changed.notify_all()

    async def take(self, *, num_written: int, wait_s: float) -> list[tuple[int, dict[str, float]]]:
        """Forget the first `num_written` items, which the driver has written; return the rest, once there are any."""
        async with self._changed:
            del self._items[:num_written]
            self._changed.notify_all()
            await self._until(lambda: bool(self._items), wait_s)
            return list(self._items)

    async def cannot_write(self, fault: OSError) -> None:
        """Hear that the driver writes no more: its disk is full, say."""
        async with self._changed:
            self._fault = fault
            self._changed.notify_all()

    async def written(self, *, wait_s: float) -> OSError | None:
        """Wait until the driver has written everything, or for `wait_s` seconds; return why it cannot write."""
        async with self._changed:
            await self._until(lambda: not self._items or self._fault is not None, wait_s)
            return self._fault

    async def _until(self, condition: Callable[[], bool], wait_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._changed.wait_for(condition)
