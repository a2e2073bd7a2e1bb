"""The bases of all bodies: strict, unknown fields refused, null and neutral values taken for absent."""

from typing import Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from pipelines.serve.requests.neutral_values import OF_A_REQUEST, Neutral, without_neutral

MOST_FIELDS = 100  # of one object: each that is wrong is told, and 80,000 would hold up all others for seconds


def at_most(count: int) -> BeforeValidator:
    """Refuse a large object or list before its items are looked at."""

    def refuse(value: Any) -> Any:
        if isinstance(value, dict | list) and len(value) > count:
            raise ValueError(f"{len(value)} items, {count} are the most")
        return value

    return BeforeValidator(refuse)


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class RequestBody(Body):
    """What a client sends. Strict: a number in quotes is a text, and no number."""

    model_config = ConfigDict(strict=True)
    neutral: ClassVar[Neutral] = OF_A_REQUEST

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, raw: Any) -> Any:
        """Take null for absent, in every field, and neutral values of fields that are not here."""
        if not isinstance(raw, dict):
            return raw
        if len(raw) > MOST_FIELDS:
            raise ValueError(f"{len(raw)} fields, {MOST_FIELDS} are the most")
        known = (field.alias or name for name, field in cls.model_fields.items())
        return without_neutral(raw, known, cls.neutral)
