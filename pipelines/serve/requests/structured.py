"""What an answer is held to: OpenAI's `response_format` and vLLM's `structured_outputs`."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.serve.engines import Grammar
from pipelines.serve.requests.strict_body import Asking

MOST_CHARACTERS = 50_000  # of a schema or a regular expression
ANY_OBJECT = '{"type": "object"}'

Schema = dict[str, Any] | bool


def schema_grammar(schema: Any) -> Grammar:
    """Return the grammar of a JSON schema."""
    return Grammar("json", schema if isinstance(schema, str) else json.dumps(schema))


def _refuse_large(schema: Any) -> Any:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{len(text)} characters, {MOST_CHARACTERS} are the most")
    return schema


class StructuredOutputs(Asking):
    """vLLM's: one of its ways to say what an answer may be."""

    choice: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=2000)]],
            Field(fail_fast=True, min_length=1, max_length=64),
        ]
        | None
    ) = None
    schema_: Schema | str | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)] | None = None

    @field_validator("schema_")
    @classmethod
    def _is_a_schema(cls, schema: Any) -> Any:
        if isinstance(schema, str):
            try:
                json.loads(schema)
            except ValueError as error:
                raise ValueError(f"no JSON: {error}") from None
        return _refuse_large(schema)

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


class PlainText(Asking):
    type: Literal["text"]

    @property
    def grammar(self) -> Grammar | None:
        return None


class JsonObject(Asking):
    type: Literal["json_object"]

    @property
    def grammar(self) -> Grammar:
        return Grammar("json", ANY_OBJECT)


class NamedSchema(Asking):
    """strict: the answer follows the schema in either case."""

    name: Annotated[str, Field(max_length=200)] = ""
    description: Annotated[str, Field(max_length=10_000)] | None = None
    strict: bool | None = None
    schema_: Schema = Field(default_factory=dict, alias="schema")

    @field_validator("schema_")
    @classmethod
    def _is_small(cls, schema: Any) -> Any:
        return _refuse_large(schema)


class JsonSchema(Asking):
    type: Literal["json_schema"]
    json_schema: NamedSchema

    @property
    def grammar(self) -> Grammar:
        return schema_grammar(self.json_schema.schema_)


ResponseFormat = Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")]
