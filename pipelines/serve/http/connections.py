"""How long a connection may say nothing, and how long the head of a request may be: uvicorn knows no such limits.

Ray Serve's proxy makes its own server; a callback of its environment gives this protocol a name there.
"""

import asyncio
from typing import Any

from uvicorn import config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pipelines.serve.serve_config import IDLE_S

HEADERS_S = 10  # from a request's first byte to the end of its headers
HEAD_BYTES = 65536  # of address and headers, or of what follows a body
UNREAD_S = 2  # how long what a refused client still sends is thrown away, so that it reads why
PLACE = "pipelines.serve.http.connections:"
TOO_LARGE = f"address and headers of a request are at most {HEAD_BYTES} bytes\n".encode()

Protocol: Any = HttpToolsProtocol


class TimedProtocol(Protocol):
    """uvicorn's protocol, which ends connections that wait for nothing but their client, or whose heads have no end."""

    idle_s: float = IDLE_S
    headers_s: float = HEADERS_S
    unread_s: float = UNREAD_S
    _deadline: asyncio.TimerHandle | None = None
    _has_begun = False  # whether a request's headers are on their way
    _head_bytes = 0  # that came since the last part of a body, or whole head
    _is_refused = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._close_after(self.idle_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._close_after(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        for start in range(0, len(data), HEAD_BYTES):
            self._feed(data[start : start + HEAD_BYTES])
        if self._is_refused:
            return
        if self.cycle is not before or (before is not None and not before.response_complete):
            self._has_begun = False  # what comes next is a body, or waits for its turn
            self._close_after(None)
        elif not self._has_begun:
            self._has_begun = True
            self._close_after(self.headers_s)

    def _feed(self, data: bytes) -> None:
        if self._is_refused or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > HEAD_BYTES:
            self._refuse()

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            self._is_refused = True
            raise ValueError("too large")  # ends the parser; `send_400_response` is what follows
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._is_refused:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _refuse(self) -> None:
        """Answer 431, unless an answer is on its way, and read no more."""
        self._is_refused = True
        if self.cycle is None or self.cycle.response_complete:
            head = b"content-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(TOO_LARGE)
            self.transport.write(STATUS_LINE[431] + head + TOO_LARGE)
        self._close_after(self.unread_s)

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
