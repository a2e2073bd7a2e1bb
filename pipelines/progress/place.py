"""How far a stage is, and the time left by the speed of its last steps."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

WINDOW_S = 30.0  # of steps that count for the speed
FEWEST_POINTS = 5  # kept even if they are older
POINT_EVERY_S = 0.25  # fast steps are counted together


@dataclass(frozen=True)
class Place:
    """How far a stage is.

    left_s: seconds to its end, None if unknown. facts: losses, rates and memory. has_inner_edges: whether the stages
    inside it print their first and last steps.
    """

    name: str
    done: int
    total: int
    left_s: float | None = None
    facts: Mapping[str, float] = field(default_factory=dict)
    has_inner_edges: bool = False


Path = tuple[Place, ...]  # the open stages, outermost first


@dataclass(frozen=True)
class Report:
    """Report of a worker process: a message, or its open stages.

    source: the worker's name among those that run at once, "" for the only one. is_edge: after the first or last step.
    """

    source: str
    message: str = ""
    path: Path | None = None
    has_moved: bool = False
    is_edge: bool = False


NO_FACTS: Mapping[str, float] = MappingProxyType({})


class Rate:
    """The speed of the last steps, as the first are slower than the rest."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def left_s(self, done: int, total: int, *, now: float | None = None) -> float | None:
        """Count a step that has ended; return the seconds left, None before the second step."""
        now = time.monotonic() if now is None else now
        points = self._points
        if len(points) < 2 or now - points[-1][0] >= POINT_EVERY_S:
            points.append((now, done))
        while len(points) > FEWEST_POINTS and now - points[0][0] > WINDOW_S:
            points.popleft()
        (first_s, first), (last_s, last) = points[0], points[-1]
        if last <= first:
            return None
        return max(0, total - done) * (last_s - first_s) / (last - first)
