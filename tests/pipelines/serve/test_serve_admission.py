"""Tests of admission: each request holds one place, no more are given than exist, and none once the server stops."""

import asyncio
from typing import Any

import pytest

from pipelines.serve.http import admission as admission_module
from pipelines.serve.http.admission import FULL, STOPPING, Admission
from pipelines.serve.http.guard import Guard
from pipelines.serve.metrics import Metrics
from pipelines.serve.serve_config import LimitsSettings, ReplicaSettings
from pipelines.serve.task_groups import gather_or_cancel


def small(**settings: Any) -> ReplicaSettings:
    return ReplicaSettings(max_ongoing_requests=2, max_queued_requests=1, **settings)


def test_places_are_those_of_the_replicas_and_of_the_queue() -> None:
    admission = Admission(small(min_replicas=2, max_replicas=2))  # 2 x 2 + 1 = 5
    places = [admission.place() for _ in range(5)]
    for place in places:
        assert admission.refusal() is None
        place.__enter__()
    assert admission.refusal() is FULL
    places[0].__exit__(None, None, None)
    assert admission.refusal() is None


def test_a_place_is_free_again_after_an_exception() -> None:
    admission = Admission(ReplicaSettings(max_ongoing_requests=1, max_queued_requests=0))

    def fail() -> None:
        with admission.place():
            assert admission.refusal() is FULL
            raise ValueError("an error")

    with pytest.raises(ValueError, match="an error"):
        fail()
    assert admission.refusal() is None


def test_replicas_are_counted_again_and_none_counts_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that lost all replicas for a moment must count again, or it would stay full forever."""
    monkeypatch.setattr(admission_module, "RECOUNT_S", 0.0)
    running = [3]

    async def count() -> int:
        return running[0]

    async def places_with(replicas: int) -> int:
        running[0] = replicas
        admission.refusal()
        await asyncio.sleep(0.01)
        held, number = [], 0
        while admission.refusal() is None:
            held.append(admission.place())
            held[-1].__enter__()
            number += 1
        for place in held:
            place.__exit__(None, None, None)
        return number

    async def run() -> list[int]:
        return [await places_with(replicas) for replicas in (3, 0, 1)]

    admission = Admission(small(max_replicas=3), count_replicas=count)
    assert asyncio.run(run()) == [7, 3, 3]


def test_a_stopping_server_admits_no_requests_and_waits_for_admitted_ones() -> None:
    async def run() -> float:
        admission = Admission(small())
        loop = asyncio.get_running_loop()
        with admission.place():
            stopping = asyncio.create_task(admission.drain())
            await asyncio.sleep(0.2)
            assert not stopping.done()
            assert admission.refusal() is STOPPING
        started = loop.time()
        await stopping
        assert admission.refusal() is STOPPING
        return loop.time() - started

    assert asyncio.run(run()) < 1


def test_a_stopping_server_waits_at_most_drain_s() -> None:
    async def run() -> None:
        admission = Admission(small(drain_s=0.1))
        with admission.place():
            await asyncio.wait_for(admission.drain(), timeout=2)

    asyncio.run(run())


def test_a_request_holds_a_place_from_the_end_of_its_body_to_the_end_of_its_answer() -> None:
    """A slowly sent body keeps no other request out."""

    async def run() -> tuple[list[int], list[Any]]:
        admission = Admission(ReplicaSettings(max_ongoing_requests=1, max_queued_requests=0))
        finish, slow_body = asyncio.Event(), asyncio.Event()

        async def app(_: Any, receive: Any, send: Any) -> None:
            assert (await receive())["body"] == b"{}"
            await finish.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        guard = Guard(app, LimitsSettings(), None, Metrics(), admission)
        statuses: list[int] = []
        headers: list[Any] = []

        async def request(body_arrives: asyncio.Event | None = None) -> None:
            async def receive() -> Any:
                if body_arrives is not None:
                    await body_arrives.wait()
                return {"type": "http.request", "body": b"{}", "more_body": False}

            async def send(message: Any) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])
                    headers.extend(message["headers"])

            scope = {"type": "http", "method": "POST", "path": "/v1/choose", "client": ("127.0.0.1", 1),
                     "headers": [(b"host", b"localhost")]}  # fmt: skip
            await guard(scope, receive, send)

        slow = asyncio.create_task(request(slow_body))
        await asyncio.sleep(0.01)
        first = asyncio.create_task(request())
        await asyncio.sleep(0.01)
        await request()  # rejected, as no place is free
        slow_body.set()
        await slow  # rejected too, after its late body
        finish.set()
        await first
        await request()
        return statuses, headers

    statuses, headers = asyncio.run(run())
    assert statuses == [429, 429, 200, 200]
    assert (b"retry-after", b"1") in headers


def test_if_one_concurrent_task_fails_the_others_are_canceled() -> None:
    ended: list[str] = []

    async def long() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            ended.append("long")
            raise

    async def faulty() -> None:
        await asyncio.sleep(0.01)
        raise ValueError("one of them")

    async def run() -> None:
        with pytest.raises(ValueError, match="one of them"):
            await gather_or_cancel(long(), faulty())
        await asyncio.sleep(0.01)
        assert ended == ["long"], "canceled before the loop ends, which would cancel all tasks"

    asyncio.run(run())
