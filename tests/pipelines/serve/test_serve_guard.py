"""Tests of the middleware in front of every route: keys, remote clients, rates, sizes, request ids and metrics."""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from ray.exceptions import TaskCancelledError
from starlette.requests import ClientDisconnect

from pft_core.errors import UserError
from pipelines.serve.deployments import ingress_ongoing
from pipelines.serve.http import guard
from pipelines.serve.http.admission import MIN_BODIES, Admission, num_bodies, num_places
from pipelines.serve.http.guard import Guard, RequestObserver
from pipelines.serve.http.keys import KeyRing, RateLimiter, add_key
from pipelines.serve.metrics import LATENCY_S, AccessLog, Metrics, note
from pipelines.serve.serve_config import LimitsSettings, ReplicaSettings

ROUTES = frozenset({"/", "/v1/choose", "/healthz", "/readyz"})
Headers = Sequence[tuple[bytes, bytes]]


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(b"".join(self.parts))["error"]
        return error


def scope(path: str, headers: Headers, client: Any = ("127.0.0.1", 5)) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": path, "headers": list(headers), "client": client}


def ask(
    app: Any, path: str = "/v1/choose", headers: Headers = (), body: Sequence[bytes] = (b"{}",), **more: Any
) -> Answer:
    """Send one request, its body in these parts."""
    answer, remaining = Answer(), list(body)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": remaining.pop(0), "more_body": bool(remaining)}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            answer.parts.append(message["body"])

    asyncio.run(app(scope(path, headers, **more), receive, send))
    return answer


class RecordingApp:
    """The application behind the guard: records the requests that reach it, and returns their bodies in parts."""

    def __init__(self) -> None:
        self.reached: list[tuple[str, bytes]] = []

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        self.reached.append((scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-inside", b"1")]})
        await send({"type": "http.response.body", "body": body[:1], "more_body": True})
        await send({"type": "http.response.body", "body": body[1:]})


@dataclass
class GuardedApp:
    """A guarded application, the application behind it, its metrics, and a key."""

    app: Any
    inside: RecordingApp
    metrics: Metrics
    secret: str

    @property
    def key(self) -> list[tuple[bytes, bytes]]:
        return [(b"authorization", f"Bearer {self.secret}".encode())]


def fence(
    tmp_path: Path,
    *,
    keyed: bool = True,
    pace: int | None = None,
    scaling: ReplicaSettings | None = None,
    **limits: Any,
) -> GuardedApp:
    file = tmp_path / "keys.json"
    secret = add_key(file, "ann", requests_per_minute=pace) if keyed else ""
    inside, metrics = RecordingApp(), Metrics()
    guarded = Guard(
        inside,
        LimitsSettings(**limits),
        KeyRing(file) if keyed else None,
        metrics,
        Admission(scaling or ReplicaSettings()),
    )
    observed = RequestObserver(guarded, metrics, ROUTES, AccessLog(tmp_path / "access.jsonl"), sends_request_id=True)
    return GuardedApp(observed, inside, metrics, secret)


@pytest.fixture
def keyed(tmp_path: Path) -> GuardedApp:
    return fence(tmp_path)


# --- keys


@pytest.mark.parametrize(
    "path", ["/", "/v1/choose", "/metrics", "/openapi.json", "/nowhere", "/healthz/", "//healthz", ""]
)
def test_every_path_needs_a_key(keyed: GuardedApp, path: str) -> None:
    answer = ask(keyed.app, path)
    assert answer.status == 401
    assert answer.error["code"] == "invalid_api_key"
    assert 'Basic realm="pft"' in answer.headers["www-authenticate"]
    assert keyed.inside.reached == []
    assert ask(keyed.app, path, keyed.key).status == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_need_no_key(keyed: GuardedApp, path: str) -> None:
    assert ask(keyed.app, path).status == 200


def test_a_browser_sends_the_key_as_a_password(keyed: GuardedApp) -> None:
    for user in ("", "anyone"):
        password = base64.b64encode(f"{user}:{keyed.secret}".encode())
        assert ask(keyed.app, "/", [(b"authorization", b"Basic " + password)]).status == 200


def test_the_first_of_two_headers_counts(keyed: GuardedApp) -> None:
    assert ask(keyed.app, headers=[(b"authorization", b"Bearer wrong"), *keyed.key]).status == 401


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> GuardedApp:
    """A fence that all generated examples share."""
    return fence(tmp_path_factory.mktemp("keyed"))


@given(scheme=st.sampled_from([b"Bearer ", b"Basic ", b"basic", b""]), value=st.binary(max_size=80))
@example(scheme=b"Basic ", value="\xfc".encode("latin-1"))
@example(scheme=b"Bearer ", value=b"\xff\xfe")
@example(scheme=b"Basic ", value=base64.b64encode(b"\xff:\xff"))
def test_a_malformed_header_is_a_wrong_key(many: GuardedApp, scheme: bytes, value: bytes) -> None:
    assert ask(many.app, headers=[(b"authorization", scheme + value)]).status == 401


def test_a_websocket_is_closed(keyed: GuardedApp) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(keyed.app({"type": "websocket", "path": "/v1/choose", "headers": []}, None, send))
    assert [message["type"] for message in sent] == ["websocket.close"]
    assert keyed.inside.reached == []


# --- a server without keys


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000", "[::1]"])
def test_without_keys_this_machine_is_admitted(tmp_path: Path, host: str) -> None:
    open_fence = fence(tmp_path, keyed=False)
    assert ask(open_fence.app, headers=[(b"host", host.encode())]).status == 200


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("localhost", "192.168.1.5"),
        ("localhost", "::ffff:10.0.0.1"),
        ("evil.example", "127.0.0.1"),
        ("evil.example:8000", "127.0.0.1"),
        ("127.0.0.1.evil.example", "127.0.0.1"),
        ("localhost.evil.example:80", "127.0.0.1"),
        ("evil.example#localhost", "127.0.0.1"),
        ("localhost@evil.example", "127.0.0.1"),
        ("192.168.1.5:8000", "127.0.0.1"),
        ("", "127.0.0.1"),
        (None, "127.0.0.1"),
    ],
)
def test_without_keys_remote_clients_and_foreign_host_names_are_refused(
    tmp_path: Path, host: str | None, client: str
) -> None:
    open_fence = fence(tmp_path, keyed=False)
    answer = ask(open_fence.app, headers=[(b"host", host.encode())] if host is not None else [], client=(client, 5))
    assert answer.status == 403
    assert "pft key" in answer.error["message"]
    assert open_fence.inside.reached == []


# --- sizes


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_up_to_the_limit_passes_and_a_larger_one_is_refused(tmp_path: Path, declared: bool) -> None:
    small = fence(tmp_path, body_bytes=10)
    for size, status in ((10, 200), (11, 413)):
        header = [(b"content-length", str(size).encode())] if declared else []
        body = [b"x" * 4, b"x" * 4, b"x" * (size - 8)]
        assert ask(small.app, headers=[*small.key, *header], body=body).status == status
    assert small.inside.reached == [("/v1/choose", b"x" * 10)]


def test_an_endless_body_is_read_only_up_to_the_limit(tmp_path: Path) -> None:
    small, parts = fence(tmp_path, body_bytes=10), 0
    answer = Answer()

    async def receive() -> dict[str, Any]:
        nonlocal parts
        parts += 1
        return {"type": "http.request", "body": b"x" * 6, "more_body": True}

    async def send(message: Any) -> None:
        answer.status = message.get("status", answer.status)

    asyncio.run(small.app(scope("/v1/choose", small.key), receive, send))
    assert (answer.status, parts) == (413, 2)  # 6 + 6 > 10


@pytest.mark.parametrize("drop", [b"x", None])
def test_a_body_that_does_not_arrive_in_time_is_refused(tmp_path: Path, drop: bytes | None) -> None:
    """The body comes byte by byte, or not at all; afterwards its key can send another request."""
    hasty = fence(tmp_path, timeout_s=0.1, requests_in_flight_per_key=1)
    answer = Answer()

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.02 if drop else 60)
        return {"type": "http.request", "body": drop, "more_body": True}

    async def send(message: Any) -> None:
        answer.status = message.get("status", answer.status)
        answer.headers |= {name.decode(): value.decode() for name, value in message.get("headers", [])}
        answer.parts.append(message.get("body", b""))

    asyncio.run(asyncio.wait_for(hasty.app(scope("/v1/choose", hasty.key), receive, send), timeout=5))
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert "body did not arrive within 0.1 s" in answer.error["message"]
    assert hasty.inside.reached == []
    assert ask(hasty.app, headers=hasty.key).status == 200


@pytest.mark.parametrize("declared", ["\xb2", "-1", "x", "9" * 5000, "1e9", ""])
def test_a_malformed_content_length_is_ignored(tmp_path: Path, declared: str) -> None:
    small = fence(tmp_path, body_bytes=10)
    length = [(b"content-length", declared.encode("latin-1"))]
    assert ask(small.app, headers=[*small.key, *length]).status == 200


def test_a_missing_key_is_refused_before_the_body_is_read(tmp_path: Path) -> None:
    small = fence(tmp_path, body_bytes=10)
    assert ask(small.app, headers=[(b"content-length", b"1000000")]).status == 401


def test_a_client_that_leaves_is_not_answered(keyed: GuardedApp) -> None:
    async def left() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there")

    asyncio.run(keyed.app(scope("/v1/choose", keyed.key), left, send))
    assert keyed.inside.reached == []


# --- rate limits


def test_a_key_beyond_its_rate_limit_gets_a_retry_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(guard, "RateLimiter", lambda: RateLimiter(lambda: now[0]))
    paced = fence(tmp_path, pace=2)
    assert [ask(paced.app, headers=paced.key).status for _ in range(3)] == [200, 200, 429]
    answer = ask(paced.app, headers=paced.key)
    assert answer.headers["retry-after"] == "30"  # 60 s / 2
    assert answer.error["code"] == "rate_limit_exceeded"
    now[0] = 29.5
    assert ask(paced.app, headers=paced.key).headers["retry-after"] == "1"
    now[0] = 30
    assert ask(paced.app, headers=paced.key).status == 200
    assert 'pft_rejected_total{reason="pace"} 3.0' in metrics_text(paced)


def test_the_recipes_rate_limit_applies_to_keys_without_one_and_not_to_probes(tmp_path: Path) -> None:
    paced = fence(tmp_path, requests_per_minute=1)
    assert [ask(paced.app, headers=paced.key).status for _ in range(2)] == [200, 429]
    assert ask(paced.app, "/healthz").status == 200
    assert ask(paced.app).status == 401  # without a key, the rate limit is not revealed


# --- places


async def send_at_once(some: GuardedApp, path: str, count: int, *, method: str = "POST") -> list[int]:
    """Send requests that are all in flight at the same time; return their statuses."""
    statuses, inside = [], asyncio.Event()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
            await inside.wait()

    request = {**scope(path, some.key), "method": method}
    tasks = [asyncio.create_task(some.app(request, receive, send)) for _ in range(count)]
    await asyncio.sleep(0.05)
    inside.set()
    await asyncio.gather(*tasks)
    return statuses


def test_a_key_cannot_exceed_its_limit_of_requests_in_flight(tmp_path: Path) -> None:
    some = fence(tmp_path, requests_in_flight_per_key=2)
    assert asyncio.run(send_at_once(some, "/v1/choose", 4)) == [200, 200, 429, 429]
    assert asyncio.run(send_at_once(some, "/v1/choose", 2)) == [200, 200], "an answered request is not in flight"
    assert 'pft_rejected_total{reason="in_flight"} 2.0' in metrics_text(some)
    other = add_key(tmp_path / "keys.json", "bob")

    async def both() -> list[int]:
        fences = (some, GuardedApp(some.app, some.inside, some.metrics, other))
        requests = (send_at_once(each, "/", 2) for each in fences)
        return [status for statuses in await asyncio.gather(*requests) for status in statuses]

    some.app._app._keys._checked_at -= 10  # so that the ring reads its file again
    assert asyncio.run(both()) == [200] * 4


@pytest.mark.parametrize(("path", "statuses"), [("/v1/models", [200, 429]), ("/v1/models/x", [200, 429]),
                                                ("/metrics", [200, 200])])  # fmt: skip
def test_routes_that_read_weights_take_a_place(tmp_path: Path, path: str, statuses: list[int]) -> None:
    one = fence(tmp_path, scaling=ReplicaSettings(max_ongoing_requests=1, max_queued_requests=0))
    assert asyncio.run(send_at_once(one, path, 2, method="GET")) == statuses


class StalledRequests:
    """Requests whose bodies do not arrive."""

    def __init__(self, some: GuardedApp, key: Headers):
        self._app, self._key, self._ends = some.app, key, asyncio.Event()
        self.statuses: list[int] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self, count: int) -> None:
        async def receive() -> Any:
            await self._ends.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            self.statuses += [message["status"]] if "status" in message else []

        request = scope("/v1/choose", self._key)
        self._tasks += [asyncio.create_task(self._app(request, receive, send)) for _ in range(count)]
        await asyncio.sleep(0.05)

    async def end(self) -> None:
        self._ends.set()
        await asyncio.gather(*self._tasks)


def test_bodies_being_received_are_limited_per_key_and_in_total(tmp_path: Path) -> None:
    some = fence(tmp_path, scaling=ReplicaSettings(max_ongoing_requests=2, max_queued_requests=0))
    others = [
        GuardedApp(some.app, some.inside, some.metrics, add_key(tmp_path / "keys.json", name)) for name in ("b", "c")
    ]
    some.app._app._keys._checked_at -= 10  # so that the ring reads its file again

    async def send() -> list[list[int]]:
        stalled = [StalledRequests(some, each.key) for each in (some, *others)]
        for each in stalled:
            await each.begin(MIN_BODIES + 1)
        statuses = [list(each.statuses) for each in stalled]
        for each in stalled:
            await each.end()
        later = StalledRequests(some, some.key)
        await later.begin(1)
        await later.end()
        return [*statuses, later.statuses]

    assert asyncio.run(send()) == [[429], [429], [429] * (MIN_BODIES + 1), []]
    assert f'pft_rejected_total{{reason="bodies"}} {MIN_BODIES + 3}.0' in metrics_text(some)


@pytest.mark.parametrize("replicas", [1, 64])
def test_admitted_requests_leave_the_ingress_room_for_probes(replicas: int) -> None:
    scaling = ReplicaSettings(max_replicas=replicas)
    places = num_places(scaling, replicas)
    assert places + 2 * num_bodies(places) <= ingress_ongoing(scaling) / 2


# --- request ids, metrics, streams


@pytest.mark.parametrize("client_id", ["abc", "A-1_2.3:4", "x" * 128])
def test_a_well_formed_request_id_is_returned(keyed: GuardedApp, client_id: str) -> None:
    answer = ask(keyed.app, headers=[*keyed.key, (b"x-request-id", client_id.encode())])
    assert answer.headers["x-request-id"] == client_id


@pytest.mark.parametrize("client_id", ["", "x" * 129, "a b", "a\r\nset-cookie: b=1", "a\n", "\xfc", "<script>", "\0"])
def test_a_malformed_request_id_is_replaced(keyed: GuardedApp, client_id: str) -> None:
    headers = [*keyed.key, (b"x-request-id", client_id.encode("latin-1"))]
    ids = [ask(keyed.app, headers=headers).headers["x-request-id"] for _ in range(2)]
    assert all(len(id) == 32 and id.isalnum() for id in ids)
    assert ids[0] != ids[1]


def test_a_refusal_has_a_request_id(keyed: GuardedApp) -> None:
    assert ask(keyed.app, headers=[(b"x-request-id", b"mine")]).headers["x-request-id"] == "mine"


def metrics_text(some: GuardedApp) -> str:
    return generate_latest(some.metrics.registry).decode()


def test_requests_are_counted_by_route_and_status_and_clients_cannot_create_series(keyed: GuardedApp) -> None:
    ask(keyed.app, "/v1/choose", keyed.key)
    before = metrics_text(keyed).count("\n")
    ask(keyed.app, "/v1/choose", keyed.key)
    for number in range(20):
        ask(keyed.app, f"/made-up/{number}", [*keyed.key, (b"x-request-id", f"id{number}".encode())])
    ask(keyed.app, "/v1/choose")
    text = metrics_text(keyed)
    assert 'pft_requests_total{route="/v1/choose",status="200"} 2.0' in text
    assert 'pft_requests_total{route="/v1/choose",status="401"} 1.0' in text
    assert 'pft_requests_total{route="other",status="200"} 20.0' in text
    assert "made-up" not in text
    assert "id1" not in text
    # However many requests there are: `other` adds a histogram and two counters, the status 401 two counters.
    assert text.count("\n") - before == len(LATENCY_S) + 1 + 3 + 2 + 2
    assert "pft_requests_in_flight 0.0" in text


def test_an_exception_in_the_application_is_counted_and_leaves_nothing_in_flight(tmp_path: Path) -> None:
    metrics = Metrics()

    async def faulty(*_: Any) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        ask(RequestObserver(faulty, metrics, ROUTES, AccessLog(), sends_request_id=True))
    text = generate_latest(metrics.registry).decode()
    assert 'pft_requests_total{route="/v1/choose",status="500"} 1.0' in text
    assert "pft_requests_in_flight 0.0" in text


async def leaves_at_once(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await receive()  # an application that streams waits for this


async def leaves_within_a_stream(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"a", "more_body": True})
    await receive()
    await receive()


async def is_answered_after_it_left(scope: Any, receive: Any, send: Any) -> None:
    await leaves_at_once(scope, receive, send)
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def is_canceled_by_the_proxy(scope: Any, receive: Any, send: Any) -> None:
    raise asyncio.CancelledError


async def fails_to_send(scope: Any, receive: Any, send: Any) -> None:
    raise ClientDisconnect


@pytest.mark.parametrize(
    "inside",
    [leaves_at_once, leaves_within_a_stream, is_answered_after_it_left, is_canceled_by_the_proxy, fails_to_send],
)
def test_a_client_that_leaves_is_counted_and_logged_with_status_499(tmp_path: Path, inside: Any) -> None:
    metrics, file = Metrics(), tmp_path / "access.jsonl"
    messages = [{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        pass

    async def request() -> None:
        observed = RequestObserver(inside, metrics, ROUTES, AccessLog(file), sends_request_id=True)
        with contextlib.suppress(asyncio.CancelledError, ClientDisconnect):
            await observed(scope("/v1/choose", []), receive, send)

    asyncio.run(request())
    text = generate_latest(metrics.registry).decode()
    assert 'pft_requests_total{route="/v1/choose",status="499"} 1.0' in text
    assert 'status="500"' not in text
    assert [line["status"] for line in logged(file, 1)] == [499]


def test_a_client_that_leaves_within_its_body_on_ray_is_logged_with_status_499(
    keyed: GuardedApp, tmp_path: Path
) -> None:
    messages = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Any:
        if not messages:
            raise TaskCancelledError
        return messages.pop(0)

    asyncio.run(keyed.app(scope("/v1/choose", keyed.key), receive, None))  # type: ignore[arg-type]
    assert [line["status"] for line in logged(tmp_path / "access.jsonl", 1)] == [499]


def test_a_disconnect_after_a_complete_answer_does_not_count_as_leaving(tmp_path: Path) -> None:
    async def inside(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        await receive()

    metrics = Metrics()
    ask(RequestObserver(inside, metrics, ROUTES, AccessLog(), sends_request_id=True))
    assert 'status="204"} 1.0' in generate_latest(metrics.registry).decode()


def logged(file: Path, count: int) -> list[dict[str, Any]]:
    """Return the lines of an access log once there are `count`, because another thread writes them."""
    end = time.monotonic() + 5
    while len(lines := file.read_text().splitlines()) < count:
        assert time.monotonic() < end
        time.sleep(0.01)
    return [json.loads(line) for line in lines]


def test_each_request_is_logged_as_a_line_of_json_without_its_content(keyed: GuardedApp, tmp_path: Path) -> None:
    async def answers_with_a_policy(scope: Any, receive: Any, send: Any) -> None:
        note(policy="policy@0123456789ab")
        await keyed.inside(scope, receive, send)

    keyed.app._app._app = answers_with_a_policy
    ask(keyed.app, "/v1/choose", [*keyed.key, (b"user-agent", b"private")], [b'{"scenario": "private"}'])
    ask(keyed.app, "/private")
    ask(keyed.app, "/healthz")
    lines = logged(tmp_path / "access.jsonl", 3)
    assert all(line.keys() == {"time", "route", "status", "key", "policy", "ms"} for line in lines)
    assert all(0 <= line["ms"] < 5000 and line["time"].endswith("+00:00") for line in lines)
    assert [(line["route"], line["status"], line["key"], line["policy"]) for line in lines] == [
        ("/v1/choose", 200, "ann", "policy@0123456789ab"),
        ("other", 401, None, None),
        ("/healthz", 200, None, "policy@0123456789ab"),
    ]
    assert "private" not in (tmp_path / "access.jsonl").read_text()


def test_an_access_log_that_is_moved_away_is_reopened(keyed: GuardedApp, tmp_path: Path) -> None:
    ask(keyed.app, "/healthz")
    logged(tmp_path / "access.jsonl", 1)
    (tmp_path / "access.jsonl").rename(tmp_path / "access.1")
    ask(keyed.app, "/readyz")
    while not (tmp_path / "access.jsonl").exists():
        time.sleep(0.01)
    assert [line["route"] for line in logged(tmp_path / "access.jsonl", 1)] == ["/readyz"]


def test_an_access_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"access_log=.*: cannot be written \(Is a directory\)"):
        AccessLog(tmp_path)


def test_a_stream_passes_through_part_by_part(keyed: GuardedApp) -> None:
    answer = ask(keyed.app, headers=keyed.key, body=[b"ab", b"cd"])
    assert answer.parts == [b"a", b"bcd"]
    assert answer.headers["x-inside"] == "1"


def test_messages_after_the_body_reach_the_application(tmp_path: Path) -> None:
    """By such a message, a stream notices that its client has left."""
    seen: list[str] = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([(await receive())["type"] for _ in range(2)])

    messages = [{"type": "http.request", "body": b"{}", "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    secret = add_key(tmp_path / "keys.json", "ann")
    app = Guard(inside, LimitsSettings(), KeyRing(tmp_path / "keys.json"), Metrics(), Admission(ReplicaSettings()))
    asyncio.run(app(scope("/x", [(b"authorization", f"Bearer {secret}".encode())]), receive, None))  # type: ignore[arg-type]
    assert seen == ["http.request", "http.disconnect"]
