"""The HTTP API: all routes, their OpenAPI document, and the responses to errors."""

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
from fastapi import Path as PathParameter
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
    ExamplesResponse,
    Gateway,
    HealthResponse,
    ModelCard,
    ModelList,
    PolicyCard,
    ScoreRequest,
    ScoreResponse,
    StreamOptions,
    TextChunk,
    TooLongError,
    VersionResponse,
    read_examples,
    refusal_reason,
)
from pipelines.serve.serve_config import ServeConfig

log = logging.getLogger(__name__)

T = TypeVar("T")

EXPECTED = (UserError, UnavailableError, EngineFault, RequestFault)  # errors whose messages are sent to clients

TYPE_NAME = re.compile(r"[\[(]|^constrained-")  # names that pydantic's unions add to the location of an error

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "The request is invalid or not supported; the message says why.",
        401: "The request has no valid API key.",
        403: "The server has no API keys, so it answers its own machine only.",
        404: "The server does not serve this model.",
        408: "The request's body did not arrive in time.",
        413: "The request's body is too large.",
        429: "There are too many requests: try again after the seconds in the `Retry-After` header.",
        431: "The request's head is larger than 64 KiB.",
        500: "The server failed to answer this request; its log says why.",
        503: "No engine replica is ready: try again after the seconds in the `Retry-After` header.",
        504: "The answer took too long.",
    }.items()
}


def _streamed(kind: str, chunk: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI response of a route that answers with one JSON object or with a stream of chunks."""
    return {
        200: {
            "description": f"OpenAI's `{kind}` object with `model`, `adapter`, `preference` and `mixing`, as in "
            f"`/v1/choose`; with `stream`, server-sent events of `{chunk}` objects and a final `[DONE]`.",
            "content": {
                "application/json": {"schema": {"type": "object"}},
                "text/event-stream": {"schema": {"type": "string"}},
            },
        }
    }


class PolicyApi(FastAPI):
    """FastAPI with an OpenAPI document that lacks FastAPI's 422 responses: this server answers 400 instead."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            for operations in document["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(name, None)
        assert self.openapi_schema is not None
        return self.openapi_schema


def make_app(
    config: ServeConfig, gateway: Gateway, metrics: Metrics, admission: Admission, *, sends_request_id: bool = True
) -> Any:
    """Return the ASGI application. sends_request_id: see `guard.RequestObserver`.

    Raises UserError if the key file is invalid, the examples are not prepared data, or the access log is not writable.
    """
    security = [Depends(HTTPBearer(auto_error=False, description="An API key created by `pft key`."))]
    app = PolicyApi(
        title="PFT policy server",
        description="Choices, scores and texts from policies under stated preferences, and OpenAI's completion routes.",
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
    paths = frozenset(route.path for route in app.routes)  # type: ignore[attr-defined]  # every route here has a path
    guarded = Guard(app, config.limits, keys, metrics, admission)
    log = AccessLog(Path(config.access_log) if config.access_log else None)
    return RequestObserver(guarded, metrics, paths, log, sends_request_id=sends_request_id)


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


Served = Annotated[Gateway, Depends(_gateway)]
ModelName = Annotated[str, PathParameter(description="The policy's id or name, as `/v1/models` lists it.")]


def _add_routes(app: FastAPI) -> None:
    app.get("/", include_in_schema=False)(_page)
    app.get("/healthz", summary="Liveness", response_description="The HTTP process is alive.")(_healthz)
    app.get("/health", include_in_schema=False)(_healthz)  # vLLM's name, which load generators request
    app.get("/readyz", summary="Readiness", response_description="An engine replica can answer.")(_readyz)
    app.get("/version", summary="Version", response_description="The server's version.")(_version)
    app.get(
        "/metrics", summary="Metrics", response_class=PlainTextResponse, response_description="Metrics in text format."
    )(_metrics)
    app.get("/v1/examples", summary="List examples", response_description="The examples.")(_examples)
    app.get("/v1/models", summary="List policies", response_description="The policies.")(_models)
    app.get("/v1/models/{model}", summary="Show a policy", response_description="The policy.")(_model)
    for route in [route for route in app.routes if isinstance(route, APIRoute)]:
        app.head(route.path, include_in_schema=False, response_model=None)(route.endpoint)
    app.post("/v1/choose", summary="Choose among options", response_description="The choice.")(_choose)
    app.post("/v1/score", summary="Score answers", response_description="The scores.")(_score)
    app.post("/v1/compare", summary="Compare poles", response_description="The answers under both poles.")(_compare)
    chat = _streamed("chat.completion", "chat.completion.chunk")
    app.post("/v1/chat/completions", summary="Answer a chat", response_model=None, responses=chat)(_chat)
    plain = _streamed("text_completion", "text_completion")
    app.post("/v1/completions", summary="Continue a prompt", response_model=None, responses=plain)(_complete)


async def _page() -> HTMLResponse:
    """Return the page for a browser: a scenario, the answers under both poles, and a slider between them."""
    text, headers = page()
    return HTMLResponse(text, headers=headers)


async def _healthz() -> HealthResponse:
    """Check that the process that answers HTTP is alive. This route needs no API key."""
    return HealthResponse(status="ok")


async def _version() -> VersionResponse:
    """Return the version of the `pft` package that the server runs."""
    return VersionResponse(version=await asyncio.to_thread(version, "pft"))


async def _readyz(request: Request, gateway: Served) -> HealthResponse:
    """Check that an engine replica can answer and that the server is not stopping. This route needs no API key."""
    if request.app.state.admission.refusal() is STOPPING:
        raise UnavailableError(STOPPING.message)
    await asyncio.wait_for(gateway.ready(), timeout=5)
    return HealthResponse(status="ready")


async def _metrics(request: Request) -> PlainTextResponse:
    """Return the server's metrics for Prometheus."""
    text = generate_latest(request.app.state.metrics.registry).decode()
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


async def _examples(request: Request) -> ExamplesResponse:
    """Return example scenarios from the recipe's data, which the page offers."""
    return ExamplesResponse(examples=request.app.state.examples)


async def _models(gateway: Served) -> ModelList:
    """List every policy that the field `model` of a request can name."""
    policies = await _in_time(gateway, partial(asyncio.to_thread, gateway.catalog.listed))
    return ModelList(object="list", data=[ModelCard(**describe(policy)) for policy in policies])


async def _model(model: ModelName, gateway: Served) -> PolicyCard:
    """Return one policy with its prompt style and preference space."""
    policy = await _in_time(gateway, partial(gateway.policy, model))
    ref = policy.ref
    return PolicyCard(**describe(policy), style=ref.style.to_dict(), space=ref.space.to_dict())


def describe(policy: Policy) -> dict[str, Any]:
    """Return the fields of a policy's ModelCard.

    An id without digits belongs to a policy of `store.root` whose weights are not read for a list.
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
    """Choose the best option, and the set of all that fit, under a preference.

    The choice is the option whose answer is likeliest, so it is always one of the options.
    """
    return await _in_time(gateway, partial(gateway.chooser.choose, body))


async def _score(body: ScoreRequest, gateway: Served) -> ScoreResponse:
    """Return the log-probability of each answer under each preference."""
    return await _in_time(gateway, partial(gateway.chooser.score, body))


async def _compare(body: CompareRequest, gateway: Served) -> CompareResponse:
    """Answer under both poles of an axis, and at a weight between them if the request has one."""
    return await _in_time(gateway, partial(gateway.compare, body))


async def _chat(body: ChatRequest, gateway: Served) -> Response:
    """Answer a chat under a preference, in OpenAI's format."""
    return await _write(body, partial(gateway.writer.chat, body), gateway)


async def _complete(body: CompletionRequest, gateway: Served) -> Response:
    """Continue a prompt under a preference, in OpenAI's format."""
    return await _write(body, partial(gateway.writer.complete, body), gateway)


async def _write(
    body: ChatRequest | CompletionRequest, prepare: Callable[[], Awaitable[Continuation]], gateway: Gateway
) -> Response:
    async def begin() -> tuple[ResponseShape, list[TextChunk], AsyncIterator[TextChunk]]:
        shape = ResponseShape(isinstance(body, ChatRequest), await prepare())
        chunks = gateway.writer.chunks(shape.continuation, stream=bool(body.stream))
        # Wait for a stream's first chunk, because until then an error can still be reported by the HTTP status.
        return shape, [await anext(chunks)] if body.stream else [chunk async for chunk in chunks], chunks

    shape, first_chunks, chunks = await _in_time(gateway, begin)
    if not body.stream:
        # In a thread, because a body with log-probabilities can have megabytes.
        return await asyncio.to_thread(lambda: JSONResponse(shape.whole(first_chunks)))
    options = body.stream_options or StreamOptions()
    stream = events(
        shape,
        _prepend(first_chunks[0], chunks),
        include_usage=options.include_usage,
        continuous_usage=options.continuous_usage_stats,
    )
    return StreamingResponse(
        _until_deadline(stream, gateway.limits.timeout_s),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store"},
    )


async def _prepend(first: TextChunk, chunks: AsyncIterator[TextChunk]) -> AsyncIterator[TextChunk]:
    yield first
    async for chunk in chunks:
        yield chunk


async def _until_deadline(stream: AsyncIterator[str], timeout_s: float) -> AsyncIterator[str]:
    """Forward a stream; report an error as an event, because the status is already sent, and end with [DONE]."""
    try:
        async with asyncio.timeout(timeout_s), aclosing(stream):  # type: ignore[type-var]  # a generator
            async for text in stream:
                yield text
        return
    except TimeoutError:
        yield event(error_body(f"not finished within {timeout_s:g} s", kind="server_error", code="timeout"))
    except Exception as error:
        yield event(error_body(_client_message(error), kind="server_error", code="stream_broken"))
    yield DONE


def _client_message(error: Exception) -> str:
    """Return the message of an error for the client; an unexpected error goes to the log instead."""
    if isinstance(error, EXPECTED):
        return str(error)
    log.error("a request failed", exc_info=error)
    return "the server failed to answer this request: see its log"


async def _in_time(gateway: Gateway, work: Callable[[], Awaitable[T]]) -> T:
    async with asyncio.timeout(gateway.limits.timeout_s):
        try:
            return await work()
        except OtherContentError:  # the policy was replaced after the look-up, so let the new one answer
            gateway.catalog.forget()
            return await work()
        except (*EXPECTED, TimeoutError):
            raise
        except Exception as error:
            raise RequestFault(_client_message(error)) from None


def _add_failures(app: FastAPI) -> None:
    def on(error: type[Exception], status: int, kind: str, code: str | None = None) -> None:
        app.exception_handler(error)(_error_handler(status, kind, code))

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


def _error_handler(status: int, kind: str, code: str | None) -> Callable[[Request, Any], Awaitable[JSONResponse]]:
    async def respond(request: Request, error: Exception) -> JSONResponse:
        message = str(error) or f"no answer within {request.app.state.gateway.limits.timeout_s:g} s"
        headers = dict([retry_after(1)]) if status == 503 else None
        return JSONResponse(error_body(message, kind=kind, code=code), status_code=status, headers=headers)

    return respond


async def _invalid(request: Request, error: Any) -> JSONResponse:
    """Report each error with its place, but never with the value, which may be long or secret."""
    errors = list(error.errors())
    if (reason := _unreadable(request, error.body, errors[0])) is not None:
        reason = _compressed(request) or reason
        return JSONResponse(error_body(reason, kind="invalid_request_error"), status_code=400)
    by_place: dict[str, list[str]] = {}
    for each in errors:
        # A union adds names of types, which are not keys, to the place.
        keys = takewhile(lambda part: not TYPE_NAME.search(str(part)), each["loc"][1:])
        place = ".".join(map(str, keys))
        text = refusal_reason(str(each["loc"][-1])) if each["type"] == "extra_forbidden" else each["msg"]
        by_place.setdefault(place, []).append(text.removeprefix("Value error, "))
    lines = [f"{place}: {', or '.join(dict.fromkeys(texts))}".removeprefix(": ") for place, texts in by_place.items()]
    param = next(iter(by_place), None) or None
    body = error_body("; ".join(lines[:5])[:2000], kind="invalid_request_error", param=param)
    return JSONResponse(body, status_code=400)


def _unreadable(request: Request, body: Any, error: Any) -> str | None:
    """Return why a body could not be read at all; None if it could."""
    if error["type"] == "missing" and len(error["loc"]) == 1:
        return "the body is empty: send a JSON object"
    if error["type"] == "json_invalid":
        at = error["loc"][-1]
        line, column = body.count("\n", 0, at) + 1, at - body.rfind("\n", 0, at)
        return f"the body is not valid JSON: {error['ctx']['error']} at line {line}, column {column} (character {at})"
    if isinstance(body, bytes) and body:
        content_type = request.headers.get("content-type")
        problem = f"has the content type {content_type[:100]!r}" if content_type else "has no content type"
        return f"the body {problem}: send JSON with the header `Content-Type: application/json`"
    return None


def _unparsed(cause: BaseException | None) -> str | None:
    """Return why a body was not parsed although its JSON syntax may be valid; None for any other cause."""
    match cause:
        case UnicodeDecodeError():
            return f"the body is not valid JSON: byte {cause.start} is not {cause.encoding} text"
        case RecursionError():
            return "the body's JSON is not supported: its brackets are nested too deeply"
        case ValueError():
            return "the body's JSON is not supported: a number has too many digits"
    return None


def _compressed(request: Request) -> str | None:
    """Return a message if an unreadable body is compressed; None if it is not."""
    coding = request.headers.get("content-encoding", "identity")
    if coding == "identity":
        return None
    return f"the body has Content-Encoding: {coding[:40]}, which this server does not support: send it uncompressed"


async def _http_error(request: Request, error: Any) -> JSONResponse:
    unparsed = _unparsed(error.__cause__)
    message = (_compressed(request) or unparsed) if unparsed else str(error.detail)
    body = error_body(message, kind="invalid_request_error")
    headers = {"Allow": _methods(request)} if error.status_code == 405 else error.headers
    return JSONResponse(body, status_code=error.status_code, headers=headers)


def _methods(request: Request) -> str:
    """Return the methods of a path; Starlette reports only those of its first route."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted(method for route in routes for method in route.methods))
