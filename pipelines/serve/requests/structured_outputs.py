"""What an answer is held to: OpenAI's `response_format` and vLLM's `structured_outputs`."""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipelines.serve.engines import Grammar
from pipelines.serve.requests.neutral_values import OF_STRUCTURED_OUTPUTS, Neutral
from pipelines.serve.requests.request_body import RequestBody

MOST_CHARACTERS = 50_000  # of a schema or a regular expression
MOST_LEVELS = 64  # of a schema: what reads it goes down as deep
TOO_DEEP = f"nested too deeply: {MOST_LEVELS} levels are the most"
TOO_LONG = f"longer than {MOST_CHARACTERS} characters, which are the most"
SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
VALUES = ("const", "default", "enum", "examples", "allOf")  # hold values, and no schemas that are to be closed
ANY_OBJECT = '{"type": "object"}'

Schema = dict[str, Any] | bool


def schema_grammar(schema: Any) -> Grammar:
    """Return the grammar of a JSON schema, given as it is or as JSON. Raises ValueError for what is none."""
    try:
        read = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(closed(read, MOST_LEVELS))
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}") from None
    if len(text) > MOST_CHARACTERS:
        raise ValueError(TOO_LONG)
    return Grammar("json", text)


def refuse_long(schema: Any) -> Any:
    """Raise ValueError for a schema that is too long, before anything goes through the whole of it.

    What is counted is at most what it is written in; the count ends where it is too much.
    """
    characters, left = 0, [schema]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            characters += 4 * len(value) + sum(map(len, value))  # quotes, colon and comma
            left += value.values()
        elif isinstance(value, list):
            characters += len(value)
            left += value
        else:
            characters += len(value) if isinstance(value, str) else 1
        if characters > MOST_CHARACTERS:
            raise ValueError(TOO_LONG)
    return schema


def closed(schema: Any, levels: int) -> Any:
    """Return a schema whose objects hold what it names and nothing else, where it does not say otherwise.

    So it is with OpenAI and with vLLM's usual grammar: else a small model adds keys until its last token. What stands
    in `allOf` speaks of one object, and stays as it is. Raises ValueError for one nested deeper than `levels`.
    """
    if levels == 0:
        raise ValueError(TOO_DEEP)
    if isinstance(schema, list):
        return [closed(each, levels - 1) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _closed_value(key, value, levels - 1) for key, value in schema.items()}
    if isinstance(found.get("properties"), dict) and not {"additionalProperties", "allOf", "$ref"} & found.keys():
        found["additionalProperties"] = False
    return found


def _closed_value(key: str, value: Any, levels: int) -> Any:
    if key in VALUES:
        return value
    if key in SCHEMAS_BY_NAME and isinstance(value, dict):
        return {name: closed(each, levels - 1) for name, each in value.items()}
    return closed(value, levels)


def _refuse_unread(schema: Any) -> Any:
    schema_grammar(schema)
    return schema


READ = (BeforeValidator(refuse_long), AfterValidator(_refuse_unread))


class StructuredOutputs(RequestBody):
    """vLLM's: one of its ways to say what an answer may be."""

    neutral: ClassVar[Neutral] = OF_STRUCTURED_OUTPUTS

    choice: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=2000)]],
            Field(fail_fast=True, min_length=1, max_length=64),
        ]
        | None
    ) = None
    schema_: Annotated[Schema | str, *READ] | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)] | None = None

    @model_validator(mode="after")
    def _one_at_most(self) -> "StructuredOutputs":
        if sum((bool(self.choice), self.schema_ is not None, bool(self.json_object), self.regex is not None)) > 1:
            raise ValueError("choice, json, json_object and regex: give one of them")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """Return what the answer is written in; None where it is one of the choices, or anything."""
        if self.regex is not None:
            return Grammar("regex", self.regex)
        if self.schema_ is not None:
            return schema_grammar(self.schema_)
        return Grammar("json", ANY_OBJECT) if self.json_object else None


class PlainText(RequestBody):
    type: Literal["text"]

    @property
    def grammar(self) -> Grammar | None:
        return None


class JsonObject(RequestBody):
    type: Literal["json_object"]

    @property
    def grammar(self) -> Grammar:
        return Grammar("json", ANY_OBJECT)


class NamedSchema(RequestBody):
    """strict: the answer follows the schema in either case."""

    name: Annotated[str, Field(max_length=200)] = ""
    description: Annotated[str, Field(max_length=10_000)] | None = None
    strict: bool | None = None
    schema_: Annotated[Schema, *READ] = Field(default_factory=dict, alias="schema")


class JsonSchema(RequestBody):
    type: Literal["json_schema"]
    json_schema: NamedSchema

    @property
    def grammar(self) -> Grammar:
        return schema_grammar(self.json_schema.schema_)


ResponseFormat = Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")]
