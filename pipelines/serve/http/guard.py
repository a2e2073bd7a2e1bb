"""The middleware in front of every route: request ids, API keys, rate and size limits, metrics and access log.

It is plain ASGI, so that streams stay streams and a client's disconnect is noticed.
"""

import asyncio
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.requests import ClientDisconnect

from pipelines.serve.http.admission import Admission, Rejection
from pipelines.serve.http.keys import Key, KeyRing, RateLimiter, secret_in
from pipelines.serve.http.openai_format import error_body
from pipelines.serve.metrics import AccessLog, AccessRecord, Metrics, note, noting
from pipelines.serve.serve_config import LimitsSettings, is_loopback

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[str, str]]

CLIENT_LEFT = 499  # nginx's status for a client that disconnected before the response
OPEN = ("/health", "/healthz", "/readyz")  # routes that need no key
READS_POLICIES = "/v1/models"  # routes that read, or fetch, weights
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
CONTENT_LENGTH = re.compile(r"[0-9]{1,20}")
# Two headers, because browsers ignore Basic after a comma.
CHALLENGES = (("WWW-Authenticate", "Bearer"), ("WWW-Authenticate", 'Basic realm="pft", charset="UTF-8"'))


class RequestObserver:
    """Gives every request an id (the client's own if it sends one), and records it in metrics and access log."""

    def __init__(self, app: App, metrics: Metrics, routes: frozenset[str], log: AccessLog, *, sends_request_id: bool):
        """sends_request_id: whether responses get the request's id; behind Ray Serve's proxy, the proxy adds it."""
        self._app, self._metrics, self._routes, self._sends_request_id = app, metrics, routes, sends_request_id
        self._log = log

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client_id = header(scope, b"x-request-id")
        request_id = client_id if REQUEST_ID.fullmatch(client_id) else uuid.uuid4().hex
        access, started = AccessRecord(self._route(scope["path"])), time.perf_counter()
        exchange = Exchange(receive, send, request_id if self._sends_request_id else None)
        with self._metrics.in_flight.track_inprogress(), noting(access):
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except (asyncio.CancelledError, ClientDisconnect):
                exchange.has_left = True
                raise
            finally:
                seconds = time.perf_counter() - started
                access.status, access.ms = exchange.outcome, round(1000 * seconds, 1)
                self._metrics.requests.labels(access.route, access.status).inc()
                self._metrics.seconds.labels(access.route).observe(seconds)
                self._log.write(access)

    def _route(self, path: str) -> str:
        """Return the metrics label of a path, one of a fixed set, so that clients cannot create new series."""
        if path.startswith("/v1/models/"):
            return "/v1/models/{model}"
        return path if path in self._routes else "other"


class Exchange:
    """Observes one request and its response as they pass through."""

    def __init__(self, receive: Receive, send: Send, request_id: str | None):
        """request_id: added to the response's headers, unless None."""
        self._receive, self._send, self._request_id = receive, send, request_id
        self._status: int | None = None
        self._is_answered = False
        self.has_left = False  # the client, before it had its answer

    @property
    def outcome(self) -> int:
        """The status sent; 499 if the client left before the end of the response, 500 if no response was sent."""
        if self.has_left and not self._is_answered:
            return CLIENT_LEFT
        return self._status or 500

    async def receive(self) -> Message:
        try:
            message = await self._receive()
        except Exception:  # Serve's `receive` raises if the client has disconnected
            message = {"type": "http.disconnect"}
        self.has_left = self.has_left or message["type"] == "http.disconnect"
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            added = [(b"x-request-id", self._request_id.encode())] if self._request_id else []
            message["headers"] = [*message.get("headers", []), *added]
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            # A response to a client that had left reached nobody.
            self._is_answered = not self.has_left


class Guard:
    """Admits requests with a valid key, within its limits, and with a body of limited size, while there is a place."""

    def __init__(self, app: App, limits: LimitsSettings, keys: KeyRing | None, metrics: Metrics, admission: Admission):
        """keys: None admits only programs on this machine."""
        self._app, self._limits, self._keys, self._metrics = app, limits, keys, metrics
        self._admission = admission
        self._pace = RateLimiter()
        self._in_flight: Counter[str] = Counter()  # requests by the key's name

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # no route uses them, and their keys are not checked
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        key = self._key(scope)
        note(key=None if key is None else key.name)
        if (refusal := self._refusal(scope, key)) is not None:
            await respond(send, *refusal)
            return
        with self._count_in_flight(key):
            await self._admit("" if key is None else key.name, scope, receive, send)

    async def _admit(self, owner: str, scope: Any, receive: Receive, send: Send) -> None:
        is_post = scope["method"] == "POST"
        if not is_post and not scope["path"].startswith(READS_POLICIES):
            await self._app(scope, receive, send)
        # Reject before any other work: under overload, rejecting is most of the work.
        elif (rejection := self._rejection(self._admission.refusal())) is not None:
            await respond(send, *rejection)
        elif not is_post:
            with self._admission.place():
                await self._app(scope, receive, send)
        elif (rejection := self._rejection(self._admission.body_refusal(owner))) is not None:
            await respond(send, *rejection)
        else:
            with self._admission.body(owner):
                body = await self._read_body(scope, receive, send)
            if body is not None:
                await self._answer(body, scope, receive, send)

    def _key(self, scope: Any) -> Key | None:
        secret = secret_in(header(scope, b"authorization"))
        return self._keys.owner(secret) if self._keys is not None and secret else None

    @contextmanager
    def _count_in_flight(self, key: Key | None) -> Iterator[None]:
        """Count a request as in flight for its key until its response ends, including while its body is received."""
        if key is None:
            yield
            return
        self._in_flight[key.name] += 1
        try:
            yield
        finally:
            self._in_flight[key.name] -= 1

    def _refusal(self, scope: Any, key: Key | None) -> tuple[int, dict[str, Any], Headers] | None:
        if self._keys is None:
            return _remote_refusal(scope)
        if key is None:
            message = "no valid API key: send one as `Authorization: Bearer KEY`, or in a browser as the password"
            return 401, error_body(message, kind="authentication_error", code="invalid_api_key"), CHALLENGES
        limit = self._limits.requests_in_flight_per_key
        if limit is not None and self._in_flight[key.name] >= limit:
            self._metrics.rejected.labels("in_flight").inc()
            message = f"this key has {limit} requests in flight, which is its limit: wait for one to end"
            return 429, error_body(message, kind="rate_limit_error", code="rate_limit_exceeded"), [retry_after(1)]
        pace = key.requests_per_minute or self._limits.requests_per_minute
        wait_s = self._pace.wait_s(key.name, pace) if pace else 0.0
        if wait_s > 0:
            self._metrics.rejected.labels("pace").inc()
            message = f"this key is limited to {pace} requests per minute: wait {wait_s:.1f} s"
            return 429, error_body(message, kind="rate_limit_error", code="rate_limit_exceeded"), [retry_after(wait_s)]
        return None

    def _rejection(self, refusal: Rejection | None) -> tuple[int, dict[str, Any], Headers] | None:
        if refusal is None:
            return None
        self._metrics.rejected.labels(refusal.reason).inc()
        kind, code = ("rate_limit_error", "overloaded") if refusal.status == 429 else ("server_error", "unavailable")
        return refusal.status, error_body(refusal.message, kind=kind, code=code), [retry_after(1)]

    async def _read_body(self, scope: Any, receive: Receive, send: Send) -> bytes | None:
        """Return the body, at most as long as the limit; None if the request was refused or the client left."""
        limit, declared = self._limits.body_bytes, header(scope, b"content-length")
        if CONTENT_LENGTH.fullmatch(declared) and int(declared) > limit:
            await respond(send, *self._too_large())
            return None
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                body = await read_body(receive, limit)
        except TimeoutError:
            await respond(send, *self._too_slow())
            return None
        if body is not None and len(body) > limit:
            await respond(send, *self._too_large())
            return None
        return body

    async def _answer(self, body: bytes, scope: Any, receive: Receive, send: Send) -> None:
        """Answer a request with a complete body. It takes a place only now, so that slow senders hold none."""
        is_replayed = False

        async def replay() -> Message:
            nonlocal is_replayed
            if is_replayed:
                return await receive()
            is_replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        if (rejection := self._rejection(self._admission.refusal())) is not None:
            await respond(send, *rejection)
            return
        with self._admission.place():
            await self._app(scope, replay, send)

    def _too_large(self) -> tuple[int, dict[str, Any], Headers]:
        message = f"the request's body is larger than {self._limits.body_bytes} bytes: send less"
        return 413, error_body(message, kind="invalid_request_error", code="too_large"), ()

    def _too_slow(self) -> tuple[int, dict[str, Any], Headers]:
        """Return the refusal of a slow body. It closes the connection, as the body's rest would pose as a request."""
        message = f"the request's body did not arrive within {self._limits.timeout_s:g} s: send it faster"
        return 408, error_body(message, kind="invalid_request_error", code="timeout"), [("Connection", "close")]


async def read_body(receive: Receive, max_bytes: int) -> bytes | None:
    """Return a body, or its beginning if it exceeds `max_bytes`; None if the client left."""
    body, more = bytearray(), True
    while more and len(body) <= max_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


def _remote_refusal(scope: Any) -> tuple[int, dict[str, Any], Headers] | None:
    """Refuse other machines, and web pages that resolve their own name to this one (DNS rebinding)."""
    client, host = scope.get("client"), header(scope, b"host")
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    if (client is None or is_loopback(client[0])) and is_loopback(name.strip("[]").lower()):
        return None
    message = "this server has no API keys, so it answers its own machine only: set keys=FILE (from `pft key`)"
    return 403, error_body(message, kind="permission_error", code="no_keys"), ()


def header(scope: Any, name: bytes) -> str:
    """Return a request header, or "" if it is absent."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def retry_after(seconds: float) -> tuple[str, str]:
    """Return the Retry-After header, in whole seconds, at least one."""
    return "Retry-After", str(max(1, -int(-seconds // 1)))


async def respond(send: Send, status: int, body: dict[str, Any], headers: Headers) -> None:
    content = json.dumps(body).encode()
    fields = [("Content-Type", "application/json"), ("Content-Length", str(len(content))), *headers]
    encoded = [(name.lower().encode(), value.encode()) for name, value in fields]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": content})
