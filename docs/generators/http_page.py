"""The HTTP API, from the OpenAPI document that a server gives out."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, cast

from fastapi.routing import APIRoute

from docs.generators.markdown import code, page, paragraphs, table
from docs.generators.model_fields import field_descriptions, purpose, subclasses
from docs.generators.schema_types import json_text, type_text
from pipelines.serve.http.admission import Admission
from pipelines.serve.http.routes import FAILURES, make_app
from pipelines.serve.metrics import Metrics
from pipelines.serve.requests import Gateway
from pipelines.serve.requests.request_body import Body
from pipelines.serve.serve_config import ServeConfig
from pipelines.validated_yaml import build

METHODS = ("get", "post")
TEXT_ANSWERS = {
    "/v1/chat/completions": "OpenAI's `chat.completion` object; with `stream`, its chunks as server-sent events.",
    "/v1/completions": "OpenAI's `text_completion` object; with `stream`, its chunks as server-sent events.",
    "/metrics": "Text in Prometheus' format.",
}


@cache
def application() -> Any:
    """Return the application of a server. Nothing is loaded: its document needs no policy."""
    config, no_gateway = build(ServeConfig, {"policy": "toyworld"}), cast(Gateway, None)
    asgi: Any = make_app(config, no_gateway, Metrics(), Admission(config.scaling))
    while not hasattr(asgi, "openapi"):
        asgi = asgi._app
    return asgi


def document() -> dict[str, Any]:
    """Return the OpenAPI document of a server."""
    found: dict[str, Any] = application().openapi()
    return found


def unlisted_rows() -> Iterator[tuple[str, str]]:
    """Yield the routes that the document leaves out, with what the source says of each."""
    for route in application().routes:
        if isinstance(route, APIRoute) and not route.include_in_schema and "GET" in (route.methods or ()):
            yield code(f"GET {route.path}"), paragraphs(route.description)


def pages() -> dict[str, str]:
    return {"http-api.md": http_page()}


def http_page() -> str:
    operations = [(path, method) for path, each in document()["paths"].items() for method in METHODS if method in each]
    return page(
        "# HTTP API",
        "A server answers at `http://127.0.0.1:8000` unless its recipe says otherwise. `/openapi.json` holds the same "
        "as this page, for programs. A field that is not listed is refused by name; `null` counts as absent. If the "
        "server has keys, send one as `Authorization: Bearer KEY`.",
        "## Routes",
        table(("Route", "What it does"), [*unlisted_rows(), *map(route_row, operations)]),
        *(part for path, method in operations for part in operation(path, method)),
        "## Objects",
        *objects(),
        "## Errors",
        'An error is OpenAI\'s: `{"error": {"message", "type", "param", "code"}}`. The message names the place '
        "and the value.",
        table(("Status", "Meaning"), [(code(status), said["description"]) for status, said in FAILURES.items()]),
    )


def route_row(operation: tuple[str, str]) -> tuple[str, str]:
    path, method = operation
    return f"[`{method.upper()} {path}`](#{anchor(path)})", document()["paths"][path][method].get("description", "")


def anchor(path: str) -> str:
    return path.strip("/").replace("/", "-").replace("{", "").replace("}", "").lower()


def operation(path: str, method: str) -> Iterator[str]:
    """Yield the parts of a route: its purpose, its body, its answer."""
    said = document()["paths"][path][method]
    yield f"### `{method.upper()} {path}` {{ #{anchor(path)} }}"
    yield paragraphs(said.get("description", ""))
    for parameter in said.get("parameters", []):
        yield f"`{parameter['name']}` in the path: {type_text(parameter['schema'], link)}."
    if "requestBody" in said:
        name = said["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        yield f"**Request**: JSON. {paragraphs(purpose(models()[name]))}"
        yield field_table(name)
    yield f"**Response**: {answer(path, said['responses']['200'])}"


def answer(path: str, response: Mapping[str, Any]) -> str:
    """Return what a route answers with."""
    if path in TEXT_ANSWERS:
        return TEXT_ANSWERS[path]
    schema = response["content"]["application/json"]["schema"]
    return f"{type_text(schema, link)}."


def objects() -> Iterator[str]:
    """Yield the objects that requests and responses are made of, apart from the requests themselves."""
    bodies = {name for name in schemas() if name.endswith("Request")}
    for name in schemas():
        if name in models() and name not in bodies and "properties" in schemas()[name]:
            yield f"### {name} {{ #{name.lower()} }}"
            yield paragraphs(purpose(models()[name]))
            yield field_table(name)


def field_table(name: str) -> str:
    """Return the fields of an object, with what the source says of each."""
    schema, said = schemas()[name], field_descriptions(models()[name])
    required = schema.get("required", [])
    rows = [
        (code(field), field_type(name, each), default(field in required, each), said.get(field) or usual(name))
        for field, each in schema["properties"].items()
    ]
    return table(("Field", "Type", "Default", "Meaning"), rows)


def field_type(name: str, schema: Mapping[str, Any]) -> str:
    """Return a field's type. In a request, null counts as absent."""
    kinds = schema.get("anyOf", [])
    if name.endswith("Request") and {"type": "null"} in kinds:
        return type_text({"anyOf": [each for each in kinds if each != {"type": "null"}]}, link)
    return type_text(schema, link)


def usual(name: str) -> str:
    """Return the meaning of a field without a description; fields of OpenAI's routes keep OpenAI's meaning."""
    return "As in OpenAI's API." if name in ("ChatRequest", "CompletionRequest") else ""


def default(is_required: bool, schema: Mapping[str, Any]) -> str:
    if is_required:
        return "required"
    value = schema.get("default")
    return "" if value is None else code(json_text(value))


def link(name: str) -> str:
    return f"[{name}](#{name.lower()})" if name in models() else name


@cache
def models() -> dict[str, Any]:
    return {name: model for name, model in subclasses([Body]).items() if name in schemas()}


def schemas() -> dict[str, Any]:
    found: dict[str, Any] = document()["components"]["schemas"]
    return found
