"""How long a connection may say nothing: uvicorn alone closes those that have had an answer, and waits for all others.

Ray Serve's proxy makes its own server; a callback of its environment gives this protocol a name there.
"""

import asyncio
from typing import Any

from uvicorn import config
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from pipelines.serve.config import IDLE_S

HEADERS_S = 10  # from a request's first byte to the end of its headers
PLACE = "pipelines.serve.http.connections:"

Protocol: Any = AutoHTTPProtocol


class TimedProtocol(Protocol):
    """uvicorn's protocol, which ends connections that wait for nothing but their client."""

    idle_s: float = IDLE_S
    headers_s: float = HEADERS_S
    _deadline: asyncio.TimerHandle | None = None
    _has_begun = False  # whether a request's headers are on their way

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._close_after(self.idle_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._close_after(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before or (before is not None and not before.response_complete):
            self._has_begun = False  # what comes next is a body, or waits for its turn
            self._close_after(None)
        elif not self._has_begun:
            self._has_begun = True
            self._close_after(self.headers_s)

    def _close_after(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._close)

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def in_proxy() -> list[Any]:
    """Give Serve's proxy, whose process calls this, the protocol above; no middleware is added."""
    config.HTTP_PROTOCOLS["auto"] = f"{PLACE}{TimedProtocol.__name__}"
    return []
