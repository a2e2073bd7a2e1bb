"""Pareto front, hypervolume and knee: values by hand, and properties of any points."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pft_core.evaluation.pareto import Point, front, hypervolume, knee

# Integers: their sums and products are exact, so the properties hold exactly.
POINTS = st.lists(st.tuples(st.integers(-2, 8), st.integers(-2, 8)), max_size=12)


def at_least(one: Point, other: Point) -> bool:
    return one[0] >= other[0] and one[1] >= other[1]


# --- front


def test_the_front_by_hand() -> None:
    # (3, 3) dominates (2, 2), and (1, 6) dominates (1, 5).
    points = [(5, 1), (2, 2), (1, 5), (3, 3), (1, 6)]
    assert front(points) == [4, 3, 0]


def test_of_equal_points_the_first_is_kept() -> None:
    assert front([(1, 2), (2, 1), (1, 2), (2, 1)]) == [0, 1]


def test_a_point_that_ties_in_one_goal_and_loses_in_the_other_is_dominated() -> None:
    assert front([(1, 1), (2, 1)]) == [1]
    assert front([(1, 1), (1, 2)]) == [1]


def test_no_points_have_no_front() -> None:
    assert front([]) == []


@given(POINTS)
def test_the_front_dominates_all_other_points_and_none_of_its_own(points: list[Point]) -> None:
    kept = front(points)
    assert all(any(at_least(points[i], point) for i in kept) for point in points)
    assert not any(at_least(points[i], points[j]) for i in kept for j in kept if i != j)
    assert [points[i][0] for i in kept] == sorted(points[i][0] for i in kept)
    assert all(points.index(points[i]) == i for i in kept)


# --- hypervolume


def test_the_area_by_hand() -> None:
    # Columns up to 1, 3 and 5, of heights 6, 3 and 1: 1 * 6 + 2 * 3 + 2 * 1.
    points = [(5, 1), (2, 2), (1, 5), (3, 3), (1, 6)]
    assert hypervolume(points) == 14
    # Above (2, 1): a column up to 3 of height 3 - 1; (5, 1) is no higher than the reference, and (1, 6) is left of it.
    assert hypervolume(points, (2, 1)) == 2


def test_a_perfect_point_covers_the_unit_square() -> None:
    assert hypervolume([(1.0, 1.0), (0.5, 0.9)]) == 1
    assert hypervolume([]) == 0


@pytest.mark.parametrize("point", [(0, 1), (1, 0), (-1, 5), (5, -1), (-1, -1)])
def test_points_not_above_the_reference_cover_nothing(point: Point) -> None:
    assert hypervolume([point]) == 0
    assert hypervolume([point, (2, 3)]) == hypervolume([(2, 3)])


@given(POINTS, st.tuples(st.integers(-2, 8), st.integers(-2, 8)))
def test_adding_a_point_never_lowers_the_area(points: list[Point], point: Point) -> None:
    assert hypervolume([*points, point]) >= hypervolume(points)


@given(POINTS)
def test_the_area_is_the_number_of_unit_squares_below_a_point(points: list[Point]) -> None:
    corners = [(x, y) for x in range(1, 9) for y in range(1, 9)]
    assert hypervolume(points) == sum(any(at_least(point, corner) for point in points) for corner in corners)


# --- knee


def test_the_knee_by_hand() -> None:
    # Ends (0, 4) and (8, 0). Scaled: (2, 3) -> 1/4 + 3/4 = 1, on the line; (6, 3) is (3/4, 3/4), 1/2 above it;
    # (7, 2) is (7/8, 1/2), 3/8 above it.
    assert knee([(0, 4), (2, 3.5), (6, 3), (7, 2), (8, 0)]) == 2


def test_goals_of_unequal_scale_count_equally() -> None:
    # Ends (0, 1) and (100, 0). Scaled: (60, 0.5) -> 0.6 + 0.5 = 1.1; (20, 0.95) -> 0.2 + 0.95 = 1.15.
    assert knee([(0, 1), (20, 0.95), (60, 0.5), (100, 0)]) == 1


def test_dominated_points_are_no_knee_and_the_index_refers_to_the_input() -> None:
    # The knee (3, 3) dominates (2, 2).
    assert knee([(2, 2), (4, 0), (3, 3), (0, 4)]) == 2


def test_of_tied_points_the_one_with_the_larger_minimum_is_the_knee() -> None:
    # Ends (0, 1) and (1, 0); (0.5, 0.9) and (0.8, 0.6) are both 0.4 above the line; the smaller goals are 0.5 and 0.6.
    assert knee([(0, 1), (0.5, 0.9), (0.8, 0.6), (1, 0)]) == 2
    assert knee([(1, 0), (0.6, 0.8), (0.9, 0.5), (0, 1)]) == 1
    # Both 0.2 above it; 0.4 + 0.8 - 1 comes out larger by 2e-16.
    assert knee([(0, 1), (0.4, 0.8), (0.6, 0.6), (1, 0)]) == 2


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(1, 1)],
        [(0, 1), (1, 0)],
        [(0, 1), (0.5, 0.6), (0.5, 0.6), (1, 1)],  # (1, 1) is the whole front
        [(0.1, 0.7), (0.4, 0.4), (0.7, 0.1)],  # on the line; 0.5 + 0.5 - 1 comes out as 2e-16
        [(0, 1), (0.4, 0.4), (1, 0)],  # a front that bends inward
    ],
)
def test_few_points_a_line_and_an_inward_bend_have_no_knee(points: list[Point]) -> None:
    assert knee(points) is None
