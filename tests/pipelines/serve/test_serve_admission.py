"""Places: one for each request, given away exactly as often as there are, and to nobody once the server stops."""

import asyncio
from typing import Any

import pytest

from pipelines.serve.http import admission as admission_module
from pipelines.serve.http.admission import FULL, STOPPING, Admission
from pipelines.serve.http.guard import Guard
from pipelines.serve.metrics import Metrics
from pipelines.serve.serve_config import LimitsSettings, ReplicaSettings
from pipelines.serve.task_groups import together


def small(**settings: Any) -> ReplicaSettings:
    return ReplicaSettings(max_ongoing_requests=2, max_queued_requests=1, **settings)


def test_there_are_as_many_places_as_replicas_take_on_and_may_wait() -> None:
    admission = Admission(small(min_replicas=2, max_replicas=2))  # 2 x 2 and 1
    places = [admission.place() for _ in range(5)]
    for place in places:
        assert admission.refusal() is None
        place.__enter__()
    assert admission.refusal() is FULL
    places[0].__exit__(None, None, None)
    assert admission.refusal() is None


def test_a_place_is_free_again_after_a_fault() -> None:
    admission = Admission(ReplicaSettings(max_ongoing_requests=1, max_queued_requests=0))

    def fail() -> None:
        with admission.place():
            assert admission.refusal() is FULL
            raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        fail()
    assert admission.refusal() is None


def test_replicas_are_counted_again_and_none_counts_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose replicas were all lost for a moment must ask again, or it would be full for ever."""
    monkeypatch.setattr(admission_module, "RECOUNT_S", 0.0)
    found = [3, 0, 1]

    async def count() -> int:
        return found[0]

    async def places_with(replicas: int) -> int:
        found[0] = replicas
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


def test_one_that_stops_takes_nobody_and_waits_for_those_who_are_in() -> None:
    async def run() -> float:
        admission = Admission(small())
        loop = asyncio.get_running_loop()
        with admission.place():
            stopping = asyncio.create_task(admission.drain())
            await asyncio.sleep(0.2)
            assert not stopping.done()
            assert admission.refusal() is STOPPING
        begun = loop.time()
        await stopping
        assert admission.refusal() is STOPPING
        return loop.time() - begun

    assert asyncio.run(run()) < 1


def test_one_that_stops_does_not_wait_longer_than_it_is_told() -> None:
    async def run() -> None:
        admission = Admission(small(drain_s=0.1))
        with admission.place():
            await asyncio.wait_for(admission.drain(), timeout=2)

    asyncio.run(run())


def test_a_request_holds_a_place_from_the_end_of_its_body_to_the_end_of_its_answer() -> None:
    """Who sends a body slowly keeps nobody out."""

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

        async def request(body_is_here: asyncio.Event | None = None) -> None:
            async def receive() -> Any:
                if body_is_here is not None:
                    await body_is_here.wait()
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
        await request()  # no place is left
        slow_body.set()
        await slow  # nor for the one whose body came late
        finish.set()
        await first
        await request()
        return statuses, headers

    statuses, headers = asyncio.run(run())
    assert statuses == [429, 429, 200, 200]
    assert (b"retry-after", b"1") in headers


def test_work_at_once_ends_at_once() -> None:
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
            await together(long(), faulty())
        await asyncio.sleep(0.01)
        assert ended == ["long"], "before the loop ends, which would end all"

    asyncio.run(run())
