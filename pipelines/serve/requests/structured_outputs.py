"""Constraints on answers: OpenAI's `response_format` and vLLM's `structured_outputs`."""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipelines.serve.engines import Grammar
from pipelines.serve.requests.neutral_values import OF_STRUCTURED_OUTPUTS, Neutral
from pipelines.serve.requests.request_body import RequestBody

MAX_CHARACTERS = 50_000  # of a schema or a regular expression
MAX_LEVELS = 64  # of a schema: code that reads it recurses as deep
TOO_DEEP = f"nested more than {MAX_LEVELS} levels deep, which is the limit"
TOO_LONG = f"longer than {MAX_CHARACTERS} characters, which is the limit"
SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
VALUES = ("const", "default", "enum", "examples", "allOf")  # hold values, or schemas that must stay open
ANY_OBJECT = '{"type": "object"}'

Schema = dict[str, Any] | bool


def schema_grammar(schema: Any) -> Grammar:
    """Return the grammar of a JSON schema, which is an object or JSON text. Raises ValueError if it is invalid."""
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(close_objects(parsed, MAX_LEVELS))
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    if len(text) > MAX_CHARACTERS:
        raise ValueError(TOO_LONG)
    return Grammar("json", text)


def refuse_long(schema: Any) -> Any:
    """Raise ValueError if a schema is too long, before any code reads all of it.

    The count never exceeds the length of the schema's text, and it stops at the limit.
    """
    characters, remaining = 0, [schema]
    while remaining:
        value = remaining.pop()
        if isinstance(value, dict):
            characters += 4 * len(value) + sum(map(len, value))  # quotes, colon and comma
            remaining += value.values()
        elif isinstance(value, list):
            characters += len(value)
            remaining += value
        else:
            characters += len(value) if isinstance(value, str) else 1
        if characters > MAX_CHARACTERS:
            raise ValueError(TOO_LONG)
    return schema


def close_objects(schema: Any, levels: int) -> Any:
    """Return a schema whose objects hold only the properties that it names, unless it says otherwise.

    OpenAI's and vLLM's usual grammars do the same; otherwise a small model adds keys until its last token. The schemas
    in `allOf` all describe one object, so they stay unchanged. Raises ValueError if it is nested deeper than `levels`.
    """
    if levels == 0:
        raise ValueError(TOO_DEEP)
    if isinstance(schema, list):
        return [close_objects(each, levels - 1) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _close_value(key, value, levels - 1) for key, value in schema.items()}
    if isinstance(closed.get("properties"), dict) and not {"additionalProperties", "allOf", "$ref"} & closed.keys():
        closed["additionalProperties"] = False
    return closed


def _close_value(key: str, value: Any, levels: int) -> Any:
    if key in VALUES:
        return value
    if key in SCHEMAS_BY_NAME and isinstance(value, dict):
        return {name: close_objects(each, levels - 1) for name, each in value.items()}
    return close_objects(value, levels)


def _refuse_invalid(schema: Any) -> Any:
    schema_grammar(schema)
    return schema


CHECKED_SCHEMA = (BeforeValidator(refuse_long), AfterValidator(_refuse_invalid))


class StructuredOutputs(RequestBody):
    """A constraint on the answer, in vLLM's form; at most one field may be set."""

    neutral: ClassVar[Neutral] = OF_STRUCTURED_OUTPUTS

    choice: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=2000)]],
            Field(fail_fast=True, min_length=1, max_length=64),
        ]
        | None
    ) = None
    """The only allowed answers."""
    schema_: Annotated[Schema | str, *CHECKED_SCHEMA] | None = Field(default=None, alias="json")
    """A JSON schema that the answer follows, as an object or as JSON text."""
    json_object: bool | None = None
    """Whether the answer is a JSON object."""
    regex: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)] | None = None
    """A regular expression that the answer matches."""

    @model_validator(mode="after")
    def _one_at_most(self) -> "StructuredOutputs":
        if sum((bool(self.choice), self.schema_ is not None, bool(self.json_object), self.regex is not None)) > 1:
            raise ValueError("choice, json, json_object and regex: use only one of them")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """Return the grammar of the answer; None if it is one of the choices, or free text."""
        if self.regex is not None:
            return Grammar("regex", self.regex)
        if self.schema_ is not None:
            return schema_grammar(self.schema_)
        return Grammar("json", ANY_OBJECT) if self.json_object else None


class PlainText(RequestBody):
    """No constraint: the answer is free text."""

    type: Literal["text"]
    """Always `text`."""

    @property
    def grammar(self) -> Grammar | None:
        return None


class JsonObject(RequestBody):
    """The answer is a JSON object."""

    type: Literal["json_object"]
    """Always `json_object`."""

    @property
    def grammar(self) -> Grammar:
        return Grammar("json", ANY_OBJECT)


class NamedSchema(RequestBody):
    """A JSON schema with a name."""

    name: Annotated[str, Field(max_length=200)] = ""
    """Accepted for compatibility; has no effect."""
    description: Annotated[str, Field(max_length=10_000)] | None = None
    """Accepted for compatibility; has no effect."""
    strict: bool | None = None
    """Accepted for compatibility; the answer always follows the schema."""
    schema_: Annotated[Schema, *CHECKED_SCHEMA] = Field(default_factory=dict, alias="schema")
    """The JSON schema."""


class JsonSchema(RequestBody):
    """The answer is JSON that follows a schema."""

    type: Literal["json_schema"]
    """Always `json_schema`."""
    json_schema: NamedSchema
    """The schema."""

    @property
    def grammar(self) -> Grammar:
        return schema_grammar(self.json_schema.schema_)


ResponseFormat = Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")]
