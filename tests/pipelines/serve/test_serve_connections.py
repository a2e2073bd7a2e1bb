"""Connections that wait for their client alone come to an end; those that wait for the server do not."""

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


class Hasty(TimedProtocol):
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
    """One place, and a second for bodies."""
    one = Admission(ReplicaSettings(max_ongoing_requests=1, max_queued_requests=0))
    yield from serving(Guard(slow_app, LimitsSettings(timeout_s=1), None, Metrics(), one))


def serving(app: Any) -> Iterator[int]:
    config = uvicorn.Config(app, port=0, http=Hasty, lifespan="off", log_level="critical", timeout_keep_alive=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def ended(port: int, *parts: bytes, pause_s: float = 0.05) -> tuple[bytes, float]:
    """Send the parts one after the other, as long as they are taken; return what came, and when it ended."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        begun = time.monotonic()
        try:
            for part in parts:
                client.sendall(part)
                time.sleep(pause_s)
            came = b"".join(iter(lambda: client.recv(1000), b""))
        except OSError:
            came = b""
        return came, time.monotonic() - begun


def test_a_connection_that_says_nothing_is_closed(port: int) -> None:
    came, seconds = ended(port)
    assert came == b""
    assert 0.3 < seconds < 2


@pytest.mark.parametrize("drop", [b"a", b"\r\n"])
def test_headers_that_come_a_byte_at_a_time_are_not_waited_for(port: int, drop: bytes) -> None:
    came, seconds = ended(port, b"GET / HTTP/1.1\r\nX: " if drop == b"a" else b"", *[drop] * 60)
    assert b"200" not in came
    assert seconds < 2


def test_an_answer_that_takes_longer_than_any_of_it_comes(port: int) -> None:
    came, seconds = ended(port, REQUEST)
    assert came.endswith(b"ok")
    assert seconds > ANSWER_S + 0.9, "uvicorn's own time without a request follows"


def test_a_body_may_take_longer_than_headers(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8\r\n\r\n"
    assert ended(port, head, *[b"x"] * 8)[0].endswith(b"ok")


def test_a_body_that_comes_a_byte_at_a_time_is_told_so_and_keeps_nobody_out(guarded: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with ThreadPoolExecutor() as pool:
        slow = [pool.submit(ended, guarded, head % 200, *[b"x"] * 80) for _ in range(3)]
        time.sleep(0.3)  # they are on their way by then, as the one place is still free
        assert ended(guarded, head % 1 + b"x")[0].startswith(b"HTTP/1.1 200")
        for came, seconds in [each.result() for each in slow]:
            assert came == b"" or came.startswith(b"HTTP/1.1 408")  # unread, where it was still sending
            assert 0.9 < seconds < 3


def test_the_second_request_of_a_connection_has_as_long_as_the_first(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        for _ in range(2):
            client.sendall(REQUEST[:20])
            time.sleep(0.1)
            client.sendall(REQUEST[20:])
            assert client.recv(1000).endswith(b"ok")
        client.sendall(REQUEST[:20])
        begun = time.monotonic()
        assert client.recv(1000) == b""
        assert 0.1 < time.monotonic() - begun < 0.9


SMALL = b"X-A: a\r\n" * 1000
ENDLESS = {
    "a header": (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: ", b"a" * 8000),
    "headers": (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", SMALL),
    "an address": (b"GET /", b"a" * 8000),
    "empty lines": (b"", b"\r\n" * 4000),
}


@pytest.mark.parametrize(("kind", "size"), [*((kind, 4 << 20) for kind in ENDLESS), ("a header", 80_000)])
def test_a_head_that_grows_too_long_is_refused_and_no_more_of_it_is_read(port: int, kind: str, size: int) -> None:
    first, part = ENDLESS[kind]
    came, seconds = ended(port, first + part * (size // len(part)), pause_s=0)
    assert came.startswith(b"HTTP/1.1 431 ")
    assert b"are at most 65536 bytes" in came
    assert seconds < 4


def test_a_whole_head_that_is_too_long_is_refused_and_a_long_one_is_not(port: int) -> None:
    head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: %s\r\n\r\n"
    assert ended(port, head % (b"a" * 65_000))[0].endswith(b"ok")
    assert ended(port, head % (b"a" * 65_600))[0].startswith(b"HTTP/1.1 431 ")


def test_what_follows_a_body_has_an_end_too(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
    assert ended(port, head + b"0\r\nX: a\r\n\r\n")[0].endswith(b"ok")
    assert not ended(port, head + b"0\r\n" + SMALL * 500, pause_s=0)[0].endswith(b"ok")


def test_a_body_may_be_longer_than_a_head(port: int) -> None:
    chunk = b"4e20\r\n" + b"x" * 20_000 + b"\r\n"
    whole = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000
    parts = (
        b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunk * 50
        + b"0\r\n\r\n"
    )
    for body in (whole, parts):
        assert ended(port, body, pause_s=0)[0].endswith(b"ok")
