"""Limits that uvicorn lacks: how long a connection may be silent, and how long a request's head may be.

Ray Serve's proxy creates its own uvicorn server. A callback named in its environment registers this protocol there.
"""

import asyncio
from typing import Any

from uvicorn import config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pipelines.serve.serve_config import IDLE_S

HEADERS_S = 10  # from a request's first byte to the end of its headers
HEAD_BYTES = 65536  # of URL and headers, or of the trailers after a body
UNREAD_S = 2  # how long a refused client's data is discarded, so that the client reads the answer
MODULE = "pipelines.serve.http.connections"
TOO_LARGE = f"the request's URL and headers exceed {HEAD_BYTES} bytes: shorten them\n".encode()

Protocol: Any = HttpToolsProtocol


class TimedProtocol(Protocol):
    """uvicorn's protocol, which also closes idle connections and those with slow or overlong request heads."""

    idle_s: float = IDLE_S
    headers_s: float = HEADERS_S
    unread_s: float = UNREAD_S
    _deadline: asyncio.TimerHandle | None = None
    _has_begun = False  # whether a request's headers are being received
    _head_bytes = 0  # received since the last complete head or part of a body
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
            self._has_begun = False  # the next data is a body, or a pipelined request that waits for its turn
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
            raise ValueError("too large")  # ends the parser, which then calls `send_400_response`
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
        """Answer 431, unless a response is already being sent, and stop reading."""
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
    """Register the protocol in the process of Serve's proxy, which calls this; return no middleware."""
    config.HTTP_PROTOCOLS["auto"] = f"{MODULE}:{TimedProtocol.__name__}"
    return []
