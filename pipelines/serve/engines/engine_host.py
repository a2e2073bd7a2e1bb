"""An engine with its node's adapters. A replica holds one; tests run one without Ray."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pft_core.encoding import BranchedExample
from pipelines.serve.engines.serving_engine import GenerationRequest, ServingEngine, Steering, Step
from pipelines.serve.policies import AdapterCache, AdapterSource, LoadedAdapter


class UnavailableError(RuntimeError):
    """No replica can answer now, because it was lost or none has started yet."""


class Backend(Protocol):
    """The gateway's view of the engines: one in this process, or replicas elsewhere.

    Methods raise UserError or UnavailableError.
    """

    def generate(self, request: GenerationRequest, source: AdapterSource | None) -> AsyncIterator[Step]:
        """Yield the steps of an answer as they come. source: the adapter; None: the bare base model."""

    async def score(
        self, examples: Sequence[BranchedExample], source: AdapterSource | None, steering: Steering | None
    ) -> list[NDArray[np.float32]]:
        """Return the log-probabilities of each example's branches."""

    async def check(self) -> None:
        """Return if the engine can answer. Raises if it cannot."""


class EngineHost:
    """Fetches, checks and locks each request's adapter while the engine answers."""

    def __init__(self, engine: ServingEngine, cache: AdapterCache):
        self.engine, self._cache = engine, cache

    async def generate(self, request: GenerationRequest, source: AdapterSource | None) -> AsyncIterator[Step]:
        async with self._held(source) as adapter:
            steps: Any = self.engine.generate(request, adapter)
            async with aclosing(steps):
                async for step in steps:
                    yield step

    async def score(
        self, examples: Sequence[BranchedExample], source: AdapterSource | None, steering: Steering | None
    ) -> list[NDArray[np.float32]]:
        async with self._held(source) as adapter:
            return await self.engine.score(examples, adapter, steering)

    async def check(self) -> None:
        await self.engine.check()

    @asynccontextmanager
    async def _held(self, source: AdapterSource | None) -> AsyncIterator[LoadedAdapter | None]:
        if source is None:
            yield None
            return
        with ExitStack() as stack:
            # In a thread, because a first use copies files or waits for another process that removes them.
            yield await asyncio.to_thread(stack.enter_context, self._cache.held(source))
