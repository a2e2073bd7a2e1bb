"""Two goals at once, both the larger the better: which points are worth a choice, how much they cover, where they bend.

A point is a pair of numbers, one per goal, such as the accuracies of the two poles.
"""

import math
from collections.abc import Sequence

Point = tuple[float, float]

_ROUNDING = 1e-9  # of scaled goals: what differs by no more is on the line, or a tie


def front(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no other point dominates, by the first goal rising.

    A point dominates one that it equals or exceeds in both goals and exceeds in at least one. Of equal points only the
    first is kept, so that along the front the first goal strictly rises and the second strictly falls.
    """
    kept, best = [], -math.inf
    for i in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i)):
        if points[i][1] > best:
            kept.append(i)
            best = points[i][1]
    return kept[::-1]


def hypervolume(points: Sequence[Point], reference: Point = (0.0, 0.0)) -> float:
    """Return the area that lies above the reference in both goals and below at least one point (Zitzler & Thiele 1999).

    Points that do not exceed the reference in both goals add nothing.
    """
    area, reached = 0.0, reference[0]
    for i in front(points):
        first, second = points[i]
        area += max(0.0, first - reached) * max(0.0, second - reference[1])
        reached = max(reached, first)
    return area


def knee(points: Sequence[Point]) -> int | None:
    """Return the index of the front's point farthest above the line through the front's two ends (Das 1999).

    Both goals are scaled to [0, 1] by the ends first: these become (0, 1) and (1, 0), and the distance of (u, v) is
    (u + v - 1) / sqrt(2). Scaling changes no order of distances; it gives rounding one size. Ties: the point whose
    smaller goal, unscaled, is the larger. None for a front of fewer than 3 points, and where none lies above the line:
    a dent has no knee.
    """
    chosen = front(points)
    if len(chosen) < 3:
        return None
    (left, top), (right, bottom) = points[chosen[0]], points[chosen[-1]]
    heights = {i: (points[i][0] - left) / (right - left) + (points[i][1] - bottom) / (top - bottom) - 1 for i in chosen}
    highest = max(heights.values())
    if highest <= _ROUNDING:
        return None
    return max((i for i in chosen if heights[i] >= highest - _ROUNDING), key=lambda i: min(points[i]))
