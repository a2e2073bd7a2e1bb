"""Pareto fronts of two goals to maximize: the non-dominated points, their hypervolume and their knee.

A point is a pair of numbers, one per goal, such as the accuracies on the two poles.
"""

import math
from collections.abc import Sequence

Point = tuple[float, float]

_ROUNDING = 1e-9  # scaled goals that differ by no more count as equal


def front(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no other point dominates, sorted by the first goal, ascending.

    A point dominates another if it is at least as large in both goals and larger in at least one. Of equal points only
    the first is kept, so along the front the first goal strictly rises and the second strictly falls.
    """
    kept, best = [], -math.inf
    for i in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i)):
        if points[i][1] > best:
            kept.append(i)
            best = points[i][1]
    return kept[::-1]


def hypervolume(points: Sequence[Point], reference: Point = (0.0, 0.0)) -> float:
    """Return the area above the reference in both goals and below at least one point (Zitzler & Thiele 1999).

    Points that do not exceed the reference in both goals add nothing.
    """
    area, reached = 0.0, reference[0]
    for i in front(points):
        first, second = points[i]
        area += max(0.0, first - reached) * max(0.0, second - reference[1])
        reached = max(reached, first)
    return area


def knee(points: Sequence[Point]) -> int | None:
    """Return the index of the front's point farthest above the line through the two ends of the front (Das 1999).

    Both goals are first scaled to [0, 1], so that the ends are (0, 1) and (1, 0) and the distance of (u, v) is
    (u + v - 1) / sqrt(2). Scaling does not change the order of distances, but makes one rounding tolerance fit all. Of
    tied points, the one with the larger minimum of its two unscaled goals wins. Returns None if the front has fewer
    than 3 points, or none of them lies above the line.
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
