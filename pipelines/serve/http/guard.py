"""What stands in front of every route: request ids, keys, paces, sizes, and the count of it all.

Plain ASGI, so that streams stay streams and a client that leaves is noticed.
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

CLIENT_LEFT = 499  # as nginx says it: nobody was there to be answered
OPEN = ("/health", "/healthz", "/readyz")  # need no key
READS_POLICIES = "/v1/models"  # reads, or fetches, weights
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
DECLARED = re.compile(r"[0-9]{1,20}")
# One line each: browsers do not find Basic behind a comma.
CHALLENGES = (("WWW-Authenticate", "Bearer"), ("WWW-Authenticate", 'Basic realm="pft", charset="UTF-8"'))


class RequestObserver:
    """Gives every request an id (the client's own where it has one), counts it, and logs how it ended."""

    def __init__(self, app: App, metrics: Metrics, routes: frozenset[str], log: AccessLog, *, tells_id: bool):
        """tells_id: answer with the request's id; Ray Serve's proxy does it by itself."""
        self._app, self._metrics, self._routes, self._tells_id = app, metrics, routes, tells_id
        self._log = log

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        access, started = AccessRecord(self._route(scope["path"])), time.perf_counter()
        exchange = Exchange(receive, send, request_id if self._tells_id else None)
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
        """Return the route of a path as metrics name it: a client must not name our series."""
        if path.startswith("/v1/models/"):
            return "/v1/models/{model}"
        return path if path in self._routes else "other"


class Exchange:
    """A request and its answer as they pass by."""

    def __init__(self, receive: Receive, send: Send, request_id: str | None):
        """request_id: told with the answer, unless None."""
        self._receive, self._send, self._request_id = receive, send, request_id
        self._status: int | None = None
        self._is_answered = False
        self.has_left = False  # the client, before it had its answer

    @property
    def outcome(self) -> int:
        """The status that was sent; 499 where the client left before the end of it, 500 where there was none."""
        if self.has_left and not self._is_answered:
            return CLIENT_LEFT
        return self._status or 500

    async def receive(self) -> Message:
        try:
            message = await self._receive()
        except Exception:  # Serve's own way raises where the client left meanwhile: who cannot be heard has left
            message = {"type": "http.disconnect"}
        self.has_left = self.has_left or message["type"] == "http.disconnect"
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            told = [(b"x-request-id", self._request_id.encode())] if self._request_id else []
            message["headers"] = [*message.get("headers", []), *told]
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            # What was sent to a client that had left has reached nobody.
            self._is_answered = not self.has_left


class Guard:
    """Lets in who has a key, at that key's pace, with a body of a bearable size, while there is a place."""

    def __init__(self, app: App, limits: LimitsSettings, keys: KeyRing | None, metrics: Metrics, admission: Admission):
        """keys: None lets this machine's own programs in, and nobody else."""
        self._app, self._limits, self._keys, self._metrics = app, limits, keys, metrics
        self._admission = admission
        self._pace = RateLimiter()
        self._in_flight: Counter[str] = Counter()  # requests by the key's name

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there are none, and no key was asked for
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
        with self._counted(key):
            await self._let_in("" if key is None else key.name, scope, receive, send)

    async def _let_in(self, owner: str, scope: Any, receive: Receive, send: Send) -> None:
        is_post = scope["method"] == "POST"
        if not is_post and not scope["path"].startswith(READS_POLICIES):
            await self._app(scope, receive, send)
        # Sent away before anything is done for it: under overload, that is most of the work there is.
        elif (sent_away := self._sent_away(self._admission.refusal())) is not None:
            await respond(send, *sent_away)
        elif not is_post:
            with self._admission.place():
                await self._app(scope, receive, send)
        elif (sent_away := self._sent_away(self._admission.body_refusal(owner))) is not None:
            await respond(send, *sent_away)
        else:
            with self._admission.body(owner):
                body = await self._small_body(scope, receive, send)
            if body is not None:
                await self._with_a_place(body, scope, receive, send)

    def _key(self, scope: Any) -> Key | None:
        secret = secret_in(header(scope, b"authorization"))
        return self._keys.owner(secret) if self._keys is not None and secret else None

    @contextmanager
    def _counted(self, key: Key | None) -> Iterator[None]:
        """Count a request as its key's until its answer has ended; a body that is sent slowly counts too."""
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
            return _stranger(scope)
        if key is None:
            message = "no valid API key: send it as `Authorization: Bearer KEY`; in a browser it is the password"
            return 401, error_body(message, kind="authentication_error", code="invalid_api_key"), CHALLENGES
        most = self._limits.requests_in_flight_per_key
        if most is not None and self._in_flight[key.name] >= most:
            self._metrics.rejected.labels("in_flight").inc()
            message = f"this key has {most} requests in flight, which is the most: wait for one to end"
            return 429, error_body(message, kind="rate_limit_error", code="rate_limit_exceeded"), [retry_after(1)]
        pace = key.requests_per_minute or self._limits.requests_per_minute
        wait_s = self._pace.wait_s(key.name, pace) if pace else 0.0
        if wait_s > 0:
            self._metrics.rejected.labels("pace").inc()
            message = f"this key may ask {pace} times a minute: wait {wait_s:.1f} s"
            return 429, error_body(message, kind="rate_limit_error", code="rate_limit_exceeded"), [retry_after(wait_s)]
        return None

    def _sent_away(self, refusal: Rejection | None) -> tuple[int, dict[str, Any], Headers] | None:
        if refusal is None:
            return None
        self._metrics.rejected.labels(refusal.reason).inc()
        kind, code = ("rate_limit_error", "overloaded") if refusal.status == 429 else ("server_error", "unavailable")
        return refusal.status, error_body(refusal.message, kind=kind, code=code), [retry_after(1)]

    async def _small_body(self, scope: Any, receive: Receive, send: Send) -> bytes | None:
        """Read the body up to the limit before anything else sees it; None: the request is answered, or gone."""
        most, declared = self._limits.body_bytes, header(scope, b"content-length")
        if DECLARED.fullmatch(declared) and int(declared) > most:
            await respond(send, *self._too_large())
            return None
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                body = await read_body(receive, most)
        except TimeoutError:
            await respond(send, *self._too_slow())
            return None
        if body is not None and len(body) > most:
            await respond(send, *self._too_large())
            return None
        return body

    async def _with_a_place(self, body: bytes, scope: Any, receive: Receive, send: Send) -> None:
        """Answer a request whose body is here; who sends a body slowly has held no place until now."""
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        if (sent_away := self._sent_away(self._admission.refusal())) is not None:
            await respond(send, *sent_away)
            return
        with self._admission.place():
            await self._app(scope, again, send)

    def _too_large(self) -> tuple[int, dict[str, Any], Headers]:
        message = f"the request is larger than {self._limits.body_bytes} bytes"
        return 413, error_body(message, kind="invalid_request_error", code="too_large"), ()

    def _too_slow(self) -> tuple[int, dict[str, Any], Headers]:
        """Close the connection too: what comes of the body later is nobody's request."""
        message = f"the request's body was not here within {self._limits.timeout_s:g} s"
        return 408, error_body(message, kind="invalid_request_error", code="timeout"), [("Connection", "close")]


async def read_body(receive: Receive, most: int) -> bytes | None:
    """Return a body, or as much as is larger than `most`; None where the client left."""
    body, more = bytearray(), True
    while more and len(body) <= most:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


def _stranger(scope: Any) -> tuple[int, dict[str, Any], Headers] | None:
    """Refuse other machines, and web pages that resolve their own name to this one (DNS rebinding)."""
    client, host = scope.get("client"), header(scope, b"host")
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    if (client is None or is_loopback(client[0])) and is_loopback(name.strip("[]").lower()):
        return None
    message = "this server has no API keys, so that it answers this machine only: give it keys=FILE (`pft key`)"
    return 403, error_body(message, kind="permission_error", code="no_keys"), ()


def header(scope: Any, name: bytes) -> str:
    """Return a request header, "" where it is absent."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def retry_after(seconds: float) -> tuple[str, str]:
    """Return the header that says when to come back, in whole seconds, at least one."""
    return "Retry-After", str(max(1, -int(-seconds // 1)))


async def respond(send: Send, status: int, body: dict[str, Any], headers: Headers) -> None:
    content = json.dumps(body).encode()
    fields = [("Content-Type", "application/json"), ("Content-Length", str(len(content))), *headers]
    encoded = [(name.lower().encode(), value.encode()) for name, value in fields]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": content})
