"""Formats for the numbers of a search."""

from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "\u2013"


def brief(value: Any) -> str:
    """Shorten a number that may have many digits; return other values as they are."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """Format a difference in percentage points."""
    return MISSING if value is None else f"{100 * value:+.1f}"


def interval(ends: Sequence[float] | None) -> str:
    return f"{percent(ends[0])} {MISSING} {percent(ends[1])}" if ends else ""


def changes_text(values: Mapping[str, Any]) -> str:
    """Format a trial's changes besides its ratio: train.lr = 0.01, lora.r = 8."""
    return ", ".join(f"{name} = {brief(value)}" for name, value in values.items())
