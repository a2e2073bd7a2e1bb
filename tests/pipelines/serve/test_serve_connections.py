"""Tests of connections: those that wait for their client are closed, those that wait for the server are not."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import uvicorn

from pipelines.serve.http.admission import Admission
from pipelines.serve.http.connections import TimedProtocol
from pipelines.serve.http.guard import Guard
from pipelines.serve.metrics import Metrics
from pipelines.serve.serve_config import LimitsSettings, ReplicaSettings

ANSWER_S = 0.5
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class ShortTimeoutProtocol(TimedProtocol):
    idle_s, headers_s, unread_s = 0.4, 0.2, 0.4


async def slow_app(scope: Any, receive: Any, send: Any) -> None:
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await asyncio.sleep(ANSWER_S)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    yield from serving(slow_app)


@pytest.fixture(scope="module")
def guarded() -> Iterator[int]:
    """The port of a guarded server with one place and one second for a body."""
    one = Admission(ReplicaSettings(max_ongoing_requests=1, max_queued_requests=0))
    yield from serving(Guard(slow_app, LimitsSettings(timeout_s=1), None, Metrics(), one))


def serving(app: Any) -> Iterator[int]:
    config = uvicorn.Config(
        app, port=0, http=ShortTimeoutProtocol, lifespan="off", log_level="critical", timeout_keep_alive=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def exchange(port: int, *parts: bytes, pause_s: float = 0.05) -> tuple[bytes, float]:
    """Send the parts one by one until the server closes; return its response and the seconds to the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        started = time.monotonic()
        try:
            for part in parts:
                client.sendall(part)
                time.sleep(pause_s)
            response = b"".join(iter(lambda: client.recv(1000), b""))
        except OSError:
            response = b""
        return response, time.monotonic() - started


def test_a_silent_connection_is_closed(port: int) -> None:
    response, seconds = exchange(port)
    assert response == b""
    assert 0.3 < seconds < 2


@pytest.mark.parametrize("drop", [b"a", b"\r\n"])
def test_a_connection_whose_headers_come_byte_by_byte_is_closed(port: int, drop: bytes) -> None:
    response, seconds = exchange(port, b"GET / HTTP/1.1\r\nX: " if drop == b"a" else b"", *[drop] * 60)
    assert b"200" not in response
    assert seconds < 2


def test_an_answer_that_takes_longer_than_the_limits_is_sent(port: int) -> None:
    response, seconds = exchange(port, REQUEST)
    assert response.endswith(b"ok")
    assert seconds > ANSWER_S + 0.9, "uvicorn's own keep-alive time follows"


def test_a_body_may_take_longer_than_headers(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8\r\n\r\n"
    assert exchange(port, head, *[b"x"] * 8)[0].endswith(b"ok")


def test_a_body_that_comes_byte_by_byte_gets_408_and_blocks_no_other_request(guarded: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with ThreadPoolExecutor() as pool:
        slow = [pool.submit(exchange, guarded, head % 200, *[b"x"] * 80) for _ in range(3)]
        time.sleep(0.3)  # by now their bodies are being received, and the one place is still free
        assert exchange(guarded, head % 1 + b"x")[0].startswith(b"HTTP/1.1 200")
        for response, seconds in [each.result() for each in slow]:
            assert response == b"" or response.startswith(b"HTTP/1.1 408")  # empty if it was still sending
            assert 0.9 < seconds < 3


def test_the_second_request_of_a_connection_has_the_same_time_limit(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        for _ in range(2):
            client.sendall(REQUEST[:20])
            time.sleep(0.1)
            client.sendall(REQUEST[20:])
            assert client.recv(1000).endswith(b"ok")
        client.sendall(REQUEST[:20])
        started = time.monotonic()
        assert client.recv(1000) == b""
        assert 0.1 < time.monotonic() - started < 0.9


SMALL = b"X-A: a\r\n" * 1000
ENDLESS = {
    "a header": (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: ", b"a" * 8000),
    "headers": (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", SMALL),
    "a URL": (b"GET /", b"a" * 8000),
    "empty lines": (b"", b"\r\n" * 4000),
}


@pytest.mark.parametrize(("kind", "size"), [*((kind, 4 << 20) for kind in ENDLESS), ("a header", 80_000)])
def test_a_head_that_grows_too_long_is_refused_and_not_read_further(port: int, kind: str, size: int) -> None:
    first, part = ENDLESS[kind]
    response, seconds = exchange(port, first + part * (size // len(part)), pause_s=0)
    assert response.startswith(b"HTTP/1.1 431 ")
    assert b"exceed 65536 bytes" in response
    assert seconds < 4


def test_a_complete_head_beyond_the_limit_is_refused_and_one_below_it_is_not(port: int) -> None:
    head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: %s\r\n\r\n"
    assert exchange(port, head % (b"a" * 65_000))[0].endswith(b"ok")
    assert exchange(port, head % (b"a" * 65_600))[0].startswith(b"HTTP/1.1 431 ")


def test_the_trailers_of_a_body_are_limited(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
    assert exchange(port, head + b"0\r\nX: a\r\n\r\n")[0].endswith(b"ok")
    assert not exchange(port, head + b"0\r\n" + SMALL * 500, pause_s=0)[0].endswith(b"ok")


def test_a_body_may_be_longer_than_a_head(port: int) -> None:
    chunk = b"4e20\r\n" + b"x" * 20_000 + b"\r\n"
    whole = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000
    parts = (
        b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunk * 50
        + b"0\r\n\r\n"
    )
    for body in (whole, parts):
        assert exchange(port, body, pause_s=0)[0].endswith(b"ok")
