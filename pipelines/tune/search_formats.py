"""How the numbers of a search are written for reading."""

from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "\u2013"


def brief(value: Any) -> str:
    """Write a number of a table that may have many digits; other values as they are."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """Write a difference in percentage points."""
    return MISSING if value is None else f"{100 * value:+.1f}"


def interval(ends: Sequence[float] | None) -> str:
    return f"{percent(ends[0])} {MISSING} {percent(ends[1])}" if ends else ""


def in_words(values: Mapping[str, Any]) -> str:
    """Write what a trial changes, beside its ratio: train.lr = 0.01, lora.r = 8."""
    return ", ".join(f"{name} = {brief(value)}" for name, value in values.items())
