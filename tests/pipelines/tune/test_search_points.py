"""The points of a search, counted by hand."""

import math

import pytest

from pft_core.errors import UserError
from pipelines.config.search_settings import SearchSettings
from pipelines.tune.search_points import (
    SearchPoint,
    at_log_ratio,
    distinct_ratios,
    grid_cells,
    grid_points,
    log_ratio,
    soup_points,
    verification_points,
)

SEARCH = SearchSettings()  # {0, 0.25, 0.5, 1, 2} squared


def weights(points: list[SearchPoint]) -> list[tuple[float, float]]:
    return [(point.alpha, point.beta) for point in points]


def test_the_grid_of_the_paper_has_24_cells_that_train_and_nine_ratios() -> None:
    cells = grid_cells(SEARCH)
    assert len(cells) == 25
    assert sum(any(cell) for cell in cells) == 24
    # 0:1, 1:8, 1:4, 1:2, 1:1, 2:1, 4:1, 8:1, 1:0, each by the cell whose weights sum closest to 2:
    # 1:4 as 0.5 + 2 = 2.5 rather than 0.25 + 1 = 1.25, 1:2 as 0.5 + 1 = 1.5 rather than 1 + 2 = 3.
    assert distinct_ratios(cells) == [
        (0, 2), (0.25, 2), (0.5, 2), (0.5, 1), (1, 1), (1, 0.5), (2, 0.5), (2, 0.25), (2, 0),
    ]  # fmt: skip


def test_the_grid_is_a_training_for_each_ratio_and_the_base_for_no_weights() -> None:
    points = grid_points(SEARCH)
    assert [point.source for point in points] == ["trained"] * 9 + ["base"]
    assert grid_points(SearchSettings(alphas=[1], betas=[1, 2])) == [SearchPoint(1, 2), SearchPoint(1, 1)]


def test_other_choices_multiply_the_grid() -> None:
    search = SearchSettings(alphas=[1], betas=[1], space={"train.lr": [0.1, 0.2], "lora.r": [4, 8]})
    assert [dict(point.changes) for point in grid_points(search)] == [
        {"train.lr": 0.1, "lora.r": 4}, {"train.lr": 0.1, "lora.r": 8},
        {"train.lr": 0.2, "lora.r": 4}, {"train.lr": 0.2, "lora.r": 8},
    ]  # fmt: skip


def test_a_grid_cannot_walk_a_range() -> None:
    with pytest.raises(UserError, match=r"search\.space\.train\.lr is a range: .* --mode optuna"):
        grid_points(SearchSettings(space={"train.lr": {"low": 0.1, "high": 0.2}}))


def test_soups_lie_between_both_ends_and_the_middle() -> None:
    points = soup_points(SEARCH)
    assert weights(points[:3]) == [(1, 1), (0, 2), (2, 0)]
    soups = {(p.alpha, p.beta): (p.parents, p.weights) for p in points if p.source == "soup"}
    assert len(soups) == 6
    # Share 1/5 between 0 and 1/2: 2/5 of the way to the middle.
    parents, shares = soups[0.5, 2]
    assert parents == ((0, 2), (1, 1))
    assert shares == pytest.approx((0.6, 0.4))
    # Share 2/3 between 1/2 and 1: a third of the way to the end.
    parents, shares = soups[1, 0.5]
    assert parents == ((1, 1), (2, 0))
    assert shares == pytest.approx((2 / 3, 1 / 3))


def test_what_is_verified_is_farthest_from_what_was_trained() -> None:
    # Shares 1/9, 1/5, 1/3 are 1/9, 1/5, 1/6 from the nearest of 0 and 1/2; the other side is their mirror.
    assert weights(verification_points(soup_points(SEARCH), 4)) == [(0.5, 2), (2, 0.5), (0.5, 1), (1, 0.5)]
    assert verification_points(soup_points(SEARCH), 0) == []


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (SearchSettings(alphas=[1], betas=[1, 2]), "soups need at least 3 ratios, and the grid has 2"),
        (SearchSettings(space={"train.lr": [0.1]}), "differ only in their ratio"),
    ],
)
def test_soups_need_ratios_between_and_nothing_else(search, message) -> None:
    with pytest.raises(UserError, match=message):
        soup_points(search)


def test_the_log_ratio_is_json_at_the_ends_and_at_the_base() -> None:
    assert log_ratio(2, 1) == pytest.approx(math.log(2))
    assert (log_ratio(1, 0), log_ratio(0, 1), log_ratio(0, 0)) == ("inf", "-inf", None)


def test_weights_of_a_log_ratio_add_up_to_two() -> None:
    alpha, beta = at_log_ratio(math.log(3))
    assert (alpha, beta) == pytest.approx((1.5, 0.5))


def test_a_point_comes_back_from_json() -> None:
    point = soup_points(SEARCH)[4]
    assert SearchPoint.from_json(point.to_json()) == point
