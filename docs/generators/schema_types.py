"""Types in words, from JSON schemas: those of the HTTP API, and those that pydantic makes of settings."""

from collections.abc import Callable, Mapping
from typing import Any

from docs.generators.markdown import code

BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
HUGE = 2**31 - 1  # bounds from here on are of the number's type, and no limit that a reader meets
SIZES = {"items": ("minItems", "maxItems"), "entries": ("minProperties", "maxProperties")}


def type_text(schema: Mapping[str, Any], link: Callable[[str], str]) -> str:
    """Return a schema's type as Markdown. link: makes a link of the name of another schema."""
    if "$ref" in schema:
        return link(schema["$ref"].rpartition("/")[2])
    if "enum" in schema or "const" in schema:
        return ", ".join(code(json_text(value)) for value in schema.get("enum", [schema.get("const")]))
    for key in ("anyOf", "oneOf"):
        if key in schema:
            texts = [type_text(each, link) for each in schema[key]]
            return " or ".join(dict.fromkeys(texts))
    if "allOf" in schema:
        return type_text(schema["allOf"][0], link)
    return TYPES.get(schema.get("type", "any"), plain)(schema, link)


def plain(schema: Mapping[str, Any], link: Callable[[str], str]) -> str:
    return str(schema.get("type", "any value"))


def null(schema: Mapping[str, Any], link: Callable[[str], str]) -> str:
    return "`null`"


def number(schema: Mapping[str, Any], link: Callable[[str], str]) -> str:
    bounds = [f"{word} {json_text(schema[key])}" for key, word in BOUNDS.items() if abs(schema.get(key, HUGE)) < HUGE]
    return f"{schema['type']} ({', '.join(bounds)})" if bounds else str(schema["type"])


def array(schema: Mapping[str, Any], link: Callable[[str], str]) -> str:
    return f"list of {type_text(schema.get('items', {}), link)}{size_text(schema, 'items')}"


def mapping(schema: Mapping[str, Any], link: Callable[[str], str]) -> str:
    values = schema.get("additionalProperties")
    if not isinstance(values, Mapping):
        return "object"
    return f"object of name to {type_text(values, link)}{size_text(schema, 'entries')}"


def size_text(schema: Mapping[str, Any], what: str) -> str:
    """Return how many items a list may have, such as ", 2 to 10 items"."""
    least, most = (schema.get(key) for key in SIZES[what])
    if most is None:
        return f", at least {least}" if least else ""
    if least == most:
        return f", exactly {least}"
    return f", {least} to {most} {what}" if least else f", at most {most} {what}"


TYPES: Mapping[str, Callable[[Mapping[str, Any], Callable[[str], str]], str]] = {
    "null": null,
    "integer": number,
    "number": number,
    "array": array,
    "object": mapping,
}


def json_text(value: object) -> str:
    """Return a value as a YAML recipe and the command line write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(json_text(each) for each in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {json_text(each)}' for key, each in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)
