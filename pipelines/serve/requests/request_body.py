"""The base classes of all bodies: strict, unknown fields refused, null and neutral values treated as absent."""

from typing import Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from pipelines.serve.requests.neutral_values import OF_A_REQUEST, Neutral, without_neutral

MAX_FIELDS = 100  # of one object, as each invalid one is reported: 80,000 would delay all requests for seconds


def at_most(count: int) -> BeforeValidator:
    """Return a validator that refuses a large object or list before its items are read."""

    def refuse(value: Any) -> Any:
        if isinstance(value, dict | list) and len(value) > count:
            raise ValueError(f"{len(value)} items exceed the limit of {count}")
        return value

    return BeforeValidator(refuse)


class Body(BaseModel):
    """A body, or an object in one. The docstring below a field is its description in the OpenAPI document."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )


class RequestBody(Body):
    """A body, or an object in one, that a client sends. Strict: a number in quotes is a string, not a number."""

    model_config = ConfigDict(strict=True)
    neutral: ClassVar[Neutral] = OF_A_REQUEST

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, raw: Any) -> Any:
        """Drop null fields, and unknown fields with neutral values."""
        if not isinstance(raw, dict):
            return raw
        if len(raw) > MAX_FIELDS:
            raise ValueError(f"{len(raw)} fields exceed the limit of {MAX_FIELDS}")
        known = (field.alias or name for name, field in cls.model_fields.items())
        return without_neutral(raw, known, cls.neutral)
