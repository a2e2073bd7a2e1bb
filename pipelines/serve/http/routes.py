"""The HTTP API: every route that exists, and how mistakes and overload are told."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException
from starlette.routing import Match

from pft_core.errors import UserError
from pipelines.serve.engines import EngineFault, RequestFault, UnavailableError
from pipelines.serve.http.admission import STOPPING, Admission
from pipelines.serve.http.guard import Guard, RequestObserver, retry_after
from pipelines.serve.http.keys import KeyRing
from pipelines.serve.http.openai_format import DONE, ResponseShape, error_body, event, events
from pipelines.serve.http.page import page
from pipelines.serve.metrics import AccessLog, Metrics
from pipelines.serve.policies import OtherContentError, Policy, UnknownModelError, UnreachableError
from pipelines.serve.requests import (
    ChatRequest,
    ChooseRequest,
    ChooseResponse,
    CompareRequest,
    CompareResponse,
    CompletionRequest,
    Continuation,
    ControlTokenError,
    ErrorResponse,
    Gateway,
    ScoreRequest,
    ScoreResponse,
    StreamOptions,
    TextChunk,
    TooLongError,
    read_examples,
    why_refused,
)
from pipelines.serve.serve_config import ServeConfig

log = logging.getLogger(__name__)

T = TypeVar("T")

FORESEEN = (UserError, UnavailableError, EngineFault, RequestFault)  # what clients are told in its own words

TYPE_NAME = re.compile(r"[\[(]|^constrained-")  # what pydantic's unions add to the place of a fault

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "The request is not one that this server can answer; the message says why.",
        401: "No valid API key.",
        403: "A server without keys answers its own machine only.",
        404: "No such model.",
        408: "The request's body did not come in time.",
        413: "The request is too large.",
        429: "Too many requests: come back after Retry-After seconds.",
        500: "The server failed at this request.",
        503: "No replica is ready: come back after Retry-After seconds.",
        504: "The answer took too long.",
    }.items()
}


def make_app(
    config: ServeConfig, gateway: Gateway, metrics: Metrics, admission: Admission, *, tells_id: bool = True
) -> Any:
    """Return the ASGI application. gateway: ready to answer; tells_id: see `guard.Observed`.

    Raises UserError for a file of keys that is none, for examples that are no prepared data, and for an access log that
    cannot be written.
    """
    security = [Depends(HTTPBearer(auto_error=False, description="A key made by `pft key`."))]
    app = FastAPI(
        title="PFT evaluation policy",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=FAILURES,
        dependencies=security,
    )
    app.state.gateway, app.state.metrics, app.state.admission = gateway, metrics, admission
    app.state.examples = read_examples(Path(config.examples)) if config.examples else []
    _add_routes(app)
    _add_failures(app)
    keys = KeyRing(Path(config.keys)) if config.keys else None
    paths = frozenset(route.path for route in app.routes)  # type: ignore[attr-defined]
    guarded = Guard(app, config.limits, keys, metrics, admission)
    log = AccessLog(Path(config.access_log) if config.access_log else None)
    return RequestObserver(guarded, metrics, paths, log, tells_id=tells_id)


def _gateway(request: Request) -> Gateway:
    found: Gateway = request.app.state.gateway
    return found


Served = Annotated[Gateway, Depends(_gateway)]


def _add_routes(app: FastAPI) -> None:
    app.get("/", include_in_schema=False)(_page)
    app.get("/healthz")(_healthz)
    app.get("/health", include_in_schema=False)(_healthz)  # vLLM's name, which load generators ask for
    app.get("/readyz")(_readyz)
    app.get("/version")(_version)
    app.get("/metrics", response_class=PlainTextResponse)(_metrics)
    app.get("/v1/examples")(_examples)
    app.get("/v1/models")(_models)
    app.get("/v1/models/{model}")(_model)
    for route in [route for route in app.routes if isinstance(route, APIRoute)]:
        app.head(route.path, include_in_schema=False, response_model=None)(route.endpoint)
    app.post("/v1/choose")(_choose)
    app.post("/v1/score")(_score)
    app.post("/v1/compare")(_compare)
    app.post("/v1/chat/completions", response_model=None)(_chat)
    app.post("/v1/completions", response_model=None)(_complete)


async def _page() -> HTMLResponse:
    text, headers = page()
    return HTMLResponse(text, headers=headers)


async def _healthz() -> dict[str, str]:
    """Whether the process that answers HTTP is alive."""
    return {"status": "ok"}


async def _version() -> dict[str, str]:
    """The version of PFT that answers."""
    return {"version": await asyncio.to_thread(version, "pft")}


async def _readyz(request: Request, gateway: Served) -> dict[str, str]:
    """Whether a replica of the engine would answer now, and the server goes on."""
    if request.app.state.admission.refusal() is STOPPING:
        raise UnavailableError(STOPPING.message)
    await asyncio.wait_for(gateway.ready(), timeout=5)
    return {"status": "ready"}


async def _metrics(request: Request) -> PlainTextResponse:
    """Prometheus metrics."""
    text = generate_latest(request.app.state.metrics.registry).decode()
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


async def _examples(request: Request) -> dict[str, Any]:
    """Scenarios of the recipe's data that the page offers."""
    return {"examples": request.app.state.examples}


async def _models(gateway: Served) -> dict[str, Any]:
    """Every policy that `model` can name."""
    policies = await _in_time(gateway, partial(asyncio.to_thread, gateway.catalog.listed))
    return {"object": "list", "data": [described(policy) for policy in policies]}


async def _model(model: str, gateway: Served) -> dict[str, Any]:
    """One policy, with the words that it is asked in."""
    policy = await _in_time(gateway, partial(gateway.policy, model))
    ref = policy.ref
    return {**described(policy), "style": ref.style.to_dict(), "space": ref.space.to_dict()}


def described(policy: Policy) -> dict[str, Any]:
    """OpenAI's model object, with what identifies the policy; `adapter_sha256` is what reports call it.

    A name without digits is one of `store.root` whose weights were not read for this.
    """
    ref = policy.ref
    return {
        "id": policy.id,
        "object": "model",
        "created": 0,
        "owned_by": "pft",
        "base": ref.base,
        "adapter": policy.source and policy.source.id,
        "adapter_sha256": ref.adapter_sha256 if "@" in policy.id else None,
        "template_digest": ref.template_digest,
        "config_digest": ref.config_digest,
        "data_digest": ref.data_digest,
        "trained_sides": list(ref.trained_sides),
    }


async def _choose(body: ChooseRequest, gateway: Served) -> ChooseResponse:
    """Choose an option, and all that fit, under a preference; constrained to the options, so that it always parses."""
    return await _in_time(gateway, partial(gateway.chooser.choose, body))


async def _score(body: ScoreRequest, gateway: Served) -> ScoreResponse:
    """Log-probabilities of given answers under given preferences."""
    return await _in_time(gateway, partial(gateway.chooser.score, body))


async def _compare(body: CompareRequest, gateway: Served) -> CompareResponse:
    """Both poles of an axis side by side, and what lies between them."""
    return await _in_time(gateway, partial(gateway.compare, body))


async def _chat(body: ChatRequest, gateway: Served) -> Response:
    """OpenAI's chat completions, under a preference."""
    return await _written(body, partial(gateway.writer.chat, body), gateway)


async def _complete(body: CompletionRequest, gateway: Served) -> Response:
    """OpenAI's completions, under a preference."""
    return await _written(body, partial(gateway.writer.complete, body), gateway)


async def _written(
    body: ChatRequest | CompletionRequest, ask: Callable[[], Awaitable[Continuation]], gateway: Gateway
) -> Response:
    async def begun() -> tuple[ResponseShape, list[TextChunk], AsyncIterator[TextChunk]]:
        answer = ResponseShape(isinstance(body, ChatRequest), await ask())
        pieces = gateway.writer.pieces(answer.continuation, stream=bool(body.stream))
        # Of a stream, the first piece is waited for: until then a refusal can still be told by its status.
        return answer, [await anext(pieces)] if body.stream else [piece async for piece in pieces], pieces

    answer, told, pieces = await _in_time(gateway, begun)
    if not body.stream:
        return await asyncio.to_thread(lambda: JSONResponse(answer.whole(told)))  # megabytes, with log-probabilities
    options = body.stream_options or StreamOptions()
    told_events = events(
        answer,
        _after(told[0], pieces),
        include_usage=options.include_usage,
        continuous_usage=options.continuous_usage_stats,
    )
    stream = _until_deadline(told_events, gateway.limits.timeout_s)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _after(first: TextChunk, pieces: AsyncIterator[TextChunk]) -> AsyncIterator[TextChunk]:
    yield first
    async for piece in pieces:
        yield piece


async def _until_deadline(stream: AsyncIterator[str], timeout_s: float) -> AsyncIterator[str]:
    """Pass a stream on; what ends it early is told in it, as its status is sent already, and it has its end."""
    try:
        async with asyncio.timeout(timeout_s), aclosing(stream):  # type: ignore[type-var]
            async for text in stream:
                yield text
        return
    except TimeoutError:
        yield event(error_body(f"not finished within {timeout_s:g} s", kind="server_error", code="timeout"))
    except Exception as error:
        yield event(error_body(_said(error), kind="server_error", code="stream_broken"))
    yield DONE


def _said(error: Exception) -> str:
    """Return what a client is told of a fault; what nobody foresaw is for the log."""
    if isinstance(error, FORESEEN):
        return str(error)
    log.error("a request failed", exc_info=error)
    return "the server failed at this request: its log says why"


async def _in_time(gateway: Gateway, work: Callable[[], Awaitable[T]]) -> T:
    async with asyncio.timeout(gateway.limits.timeout_s):
        try:
            return await work()
        except OtherContentError:  # the policy was replaced after it was looked up: the new one answers
            gateway.catalog.forget()
            return await work()
        except (*FORESEEN, TimeoutError):
            raise
        except Exception as error:
            raise RequestFault(_said(error)) from None


def _add_failures(app: FastAPI) -> None:
    def on(error: type[Exception], status: int, kind: str, code: str | None = None) -> None:
        app.exception_handler(error)(_teller(status, kind, code))

    on(UserError, 400, "invalid_request_error")
    on(TooLongError, 400, "invalid_request_error", "context_length_exceeded")
    on(ControlTokenError, 400, "invalid_request_error", "control_token")
    on(UnknownModelError, 404, "invalid_request_error", "model_not_found")
    on(UnreachableError, 503, "server_error", "unavailable")
    on(EngineFault, 503, "server_error", "unavailable")
    on(UnavailableError, 503, "server_error", "unavailable")
    on(TimeoutError, 504, "server_error", "timeout")
    on(RequestFault, 500, "server_error", "internal_error")
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_http_error)


def _teller(status: int, kind: str, code: str | None) -> Callable[[Request, Any], Awaitable[JSONResponse]]:
    async def tell(request: Request, error: Exception) -> JSONResponse:
        message = str(error) or f"no answer within {request.app.state.gateway.limits.timeout_s:g} s"
        headers = dict([retry_after(1)]) if status == 503 else None
        return JSONResponse(error_body(message, kind=kind, code=code), status_code=status, headers=headers)

    return tell


async def _invalid(request: Request, error: Any) -> JSONResponse:
    """Say each fault with its place; never the value, which may be long or secret."""
    found = list(error.errors())
    if (unread := _unreadable(request, error.body, found[0])) is not None:
        said = _compressed(request) or unread
        return JSONResponse(error_body(said, kind="invalid_request_error"), status_code=400)
    faults: dict[str, list[str]] = {}
    for fault in found:
        # A union adds names of types to the place, which are no keys.
        keys = takewhile(lambda part: not TYPE_NAME.search(str(part)), fault["loc"][1:])
        place = ".".join(map(str, keys))
        said = why_refused(str(fault["loc"][-1])) if fault["type"] == "extra_forbidden" else fault["msg"]
        faults.setdefault(place, []).append(said.removeprefix("Value error, "))
    lines = [f"{place}: {', or '.join(dict.fromkeys(texts))}".removeprefix(": ") for place, texts in faults.items()]
    body = error_body("; ".join(lines[:5])[:2000], kind="invalid_request_error", param=next(iter(faults), None) or None)
    return JSONResponse(body, status_code=400)


def _unreadable(request: Request, body: Any, fault: Any) -> str | None:
    """Return why a body was not read at all; None where it was."""
    if fault["type"] == "missing" and len(fault["loc"]) == 1:
        return "the body is empty: send a JSON object"
    if fault["type"] == "json_invalid":
        at = fault["loc"][-1]
        line, column = body.count("\n", 0, at) + 1, at - body.rfind("\n", 0, at)
        return f"the body is no JSON: {fault['ctx']['error']} at line {line}, column {column} (character {at})"
    if isinstance(body, bytes) and body:
        given = request.headers.get("content-type")
        declared = f"declared as {given[:100]!r}" if given else "not declared"
        return f"the body is {declared}: send JSON with the header `Content-Type: application/json`"
    return None


def _unparsed(cause: BaseException | None) -> str | None:
    """Return why a body could not be parsed, where its JSON is not what is wrong; None where it is something else."""
    match cause:
        case UnicodeDecodeError():
            return f"the body is no JSON: no {cause.encoding} text at byte {cause.start}"
        case RecursionError():
            return "the body is no JSON that is read here: its brackets are nested too deeply"
        case ValueError():
            return "the body is no JSON that is read here: a number has too many digits"
    return None


def _compressed(request: Request) -> str | None:
    """Return why a body that could not be read could not; None where it is not compressed."""
    coding = request.headers.get("content-encoding", "identity")
    if coding == "identity":
        return None
    return f"the body is sent with Content-Encoding: {coding[:40]}, which is not read here: send it as it is"


async def _http_error(request: Request, error: Any) -> JSONResponse:
    unparsed = _unparsed(error.__cause__)
    said = (_compressed(request) or unparsed) if unparsed else str(error.detail)
    body = error_body(said, kind="invalid_request_error")
    headers = {"Allow": _methods(request)} if error.status_code == 405 else error.headers
    return JSONResponse(body, status_code=error.status_code, headers=headers)


def _methods(request: Request) -> str:
    """Return the methods of a path; Starlette tells those of its first route alone."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted(method for route in routes for method in route.methods))
