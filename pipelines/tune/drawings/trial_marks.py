"""Shared parts of the drawings of a search: measured trials, colors, and the scale of values."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from pipelines.reporting import INK, ticks
from pipelines.tune.search_schema import POLES, FigureName, GridCell, MeasuredTrial, TrialRow

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

COLORS = INK | {  # of the page in light mode, and of the drawings in files
    "card": "#ffffff",
    "rule": "#8b93a1",
    "first": "#6b4de6",
    "second": "#0a8f86",
    "both": "#d9730d",
    "heat": "#0b6bcb",
}
SOURCES = ("trained", "soup", "base")
BANDED = POLES  # metrics drawn with their intervals


def has_value(trial: TrialRow) -> TypeGuard[MeasuredTrial]:
    """Return whether a trial was measured; a stopped or failed one was not."""
    return trial["pole_first"] is not None


def base_of(trials: Sequence[TrialRow]) -> MeasuredTrial | None:
    """Return the trial that is the base model; None if it was not measured."""
    return next((trial for trial in trials if has_value(trial) and trial["source"] == "base"), None)


def sources_of(trials: Iterable[TrialRow]) -> list[str]:
    """Return the sources of the measured trials, in legend order."""
    present = {trial["source"] for trial in trials if has_value(trial)}
    return [source for source in SOURCES if source in present]


def is_same_ratio(a: float | str | None, b: float | str | None) -> bool:
    """Return whether two t are the same ratio; 0.1 : 0.3 and 0.2 : 0.6 differ in the last bit."""
    if a is None or b is None:
        return a is b
    return math.isclose(float(a), float(b), abs_tol=1e-9)


def is_of(cell: GridCell, trial: TrialRow | None) -> bool:
    """Return whether a cell has a trial's ratio and its other changes."""
    return trial is not None and is_same_ratio(cell["t"], trial["t"]) and cell["changes"] == trial["changes"]


def value_ticks(trials: Iterable[MeasuredTrial], metrics: Sequence[FigureName]) -> list[float]:
    """Return round shares that span every value and every drawn interval."""
    ends = [end for trial in trials for metric in metrics for end in _ends(trial, metric)]
    return ticks(min(ends), max(ends))


def _ends(trial: MeasuredTrial, metric: FigureName) -> list[float]:
    return [trial[metric], *(trial["intervals"][metric] if metric in BANDED else ())]


def dot_style(source: str, color: str, radius: float) -> dict[str, Any]:
    """Return the style of a trial's dot: filled if trained, hollow if a soup. radius: pixels."""
    face = COLORS["card"] if source == "soup" else color
    return {"marker": "o", "ls": "none", "mfc": face, "mec": color, "ms": 2 * radius, "mew": 1.6}


def legend_dot(source: str, color: str, radius: float) -> "Line2D":
    from matplotlib.lines import Line2D

    return Line2D([], [], **dot_style(source, color, radius))
