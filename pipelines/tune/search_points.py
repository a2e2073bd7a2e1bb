"""Points of a search: (alpha, beta) with other changes, and how they map to the cells of the grid.

Under AdamW with clipping only the ratio of alpha to beta changes a result, so cells of one ratio share one training.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, Literal

from pft_core.errors import UserError
from pft_core.policies import between
from pipelines.config import Range, SearchSettings

Source = Literal["trained", "soup", "base"]
SUM = 2.0  # of alpha and beta if the grid does not set both; recipes use 1 and 1
ROUNDING = 12  # digits; ratios that agree in them are the same


@dataclass(frozen=True)
class SearchPoint:
    """One point to try. changes: values by dotted key of the run config.

    parents, weights: for a soup, the trained points that it is mixed from, as (alpha, beta), and their shares.
    """

    alpha: float
    beta: float
    source: Source = "trained"
    changes: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[tuple[float, float], ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def share(self) -> float:
        """Return the share of the first side, alpha / (alpha + beta), rounded so that equal ratios are equal."""
        return share_of(self.alpha, self.beta)

    @property
    def ratio(self) -> str:
        """The ratio of alpha and beta, as reports name it."""
        return ratio_name(log_ratio(self.alpha, self.beta))

    def to_json(self) -> str:
        """Return the point as JSON text."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "SearchPoint":
        """Return the point that `to_json` wrote."""
        raw = json.loads(text)
        return SearchPoint(**raw | {"parents": tuple(map(tuple, raw["parents"])), "weights": tuple(raw["weights"])})


def share_of(alpha: float, beta: float) -> float:
    """Return alpha's share of the two weights."""
    return round(alpha / (alpha + beta), ROUNDING)


def imbalance(point: SearchPoint) -> float:
    """Return how far the share is from equal weights; the base counts as the farthest."""
    return 0.5 if point.source == "base" else abs(point.share - 0.5)


def log_ratio(alpha: float, beta: float) -> float | str | None:
    """Return t = log(alpha / beta) in JSON form: "-inf" and "inf" at the ends, None for the base (0, 0)."""
    if alpha == beta == 0:
        return None
    if alpha == 0 or beta == 0:
        return "inf" if alpha else "-inf"
    return math.log(alpha / beta)


def ratio_name(t: float | str | None) -> str:
    """Format alpha : beta with the smaller one as 1, such as 1:8 or 2.5:1; 0:1 and 1:0 are one side alone."""
    if t is None:
        return "base"
    place = float(t)
    if math.isinf(place):
        return "1:0" if place > 0 else "0:1"
    larger = math.exp(abs(place))
    text = f"{larger:.3g}" if larger < 1000 else f"{larger:.0f}"
    return f"{text}:1" if place > 0 else f"1:{text}"


def at_log_ratio(t: float) -> tuple[float, float]:
    """Return the weights (alpha, beta) at t; they add up to SUM."""
    share = 1 / (1 + math.exp(-t))
    return SUM * share, SUM * (1 - share)


def grid_cells(search: SearchSettings) -> list[tuple[float, float]]:
    """Return every combination of the search's alphas and betas."""
    return list(product(sorted(set(search.alphas)), sorted(set(search.betas))))


def distinct_ratios(cells: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return one cell per ratio, by rising share of the first side: the one whose weights sum closest to SUM."""
    by_share: dict[float, tuple[float, float]] = {}
    for cell in sorted(cells, key=lambda c: (abs(math.log(sum(c) / SUM)) if sum(c) else 0.0, c)):
        if any(cell):
            by_share.setdefault(share_of(*cell), cell)
    return [by_share[share] for share in sorted(by_share)]


def grid_points(search: SearchSettings) -> list[SearchPoint]:
    """Return a training for each ratio and combination of other changes, and the base if the grid has (0, 0).

    Raises UserError for a range, which a grid cannot enumerate.
    """
    cells = grid_cells(search)
    points = [SearchPoint(a, b, changes=c) for c in combinations(search) for a, b in distinct_ratios(cells)]
    return points + base_points(cells)


def base_points(cells: Sequence[tuple[float, float]]) -> list[SearchPoint]:
    return [SearchPoint(0.0, 0.0, "base")] if (0, 0) in cells else []


def combinations(search: SearchSettings) -> Iterator[dict[str, Any]]:
    for key, values in search.space.items():
        if isinstance(values, Range):
            raise UserError(f"search.space.{key} is a range: give a list of values, or search with --mode optuna")
    lists = [values for values in search.space.values() if not isinstance(values, Range)]
    return (dict(zip(search.space, chosen, strict=True)) for chosen in product(*lists))


def soup_points(search: SearchSettings) -> list[SearchPoint]:
    """Return trainings at both ends and in the middle, then a soup for every other ratio; parents come first.

    Raises UserError if the grid has too few ratios, or if the search has other changes: soups can only mix trainings
    that are otherwise equal.
    """
    if search.space:
        raise UserError(
            "search.space: a soup mixes trainings that differ only in their ratio: empty it, or use another --mode"
        )
    cells = grid_cells(search)
    ratios = distinct_ratios(cells)
    if len(ratios) < 3:
        raise UserError(f"search: soups need at least 3 ratios, and the grid has {len(ratios)}: add alphas or betas")
    first, *inner, last = ratios
    middle = min(inner, key=lambda c: abs(share_of(*c) - 0.5))
    knots = [first, middle, last]
    soups = [soup_of(cell, knots) for cell in inner if cell != middle]
    # The middle and one end come first, so that the soups between them need not wait for the other end.
    return [*(SearchPoint(a, b) for a, b in (middle, first, last)), *soups, *base_points(cells)]


def soup_of(cell: tuple[float, float], knots: Sequence[tuple[float, float]]) -> SearchPoint:
    """Return a soup of the two neighboring trained ratios, with weights linear in the share."""
    by_share = {share_of(*knot): knot for knot in knots}
    (low, weight_low), (high, weight_high) = between(share_of(*cell), list(by_share))
    return SearchPoint(*cell, "soup", parents=(by_share[low], by_share[high]), weights=(weight_low, weight_high))


def verification_points(points: Sequence[SearchPoint], number: int) -> list[SearchPoint]:
    """Return trainings at the ratios of the `number` soups that are farthest from a trained ratio."""
    soups = [point for point in points if point.source == "soup"]
    return [
        SearchPoint(soup.alpha, soup.beta) for soup in sorted(soups, key=distance_to_parents, reverse=True)[:number]
    ]


def distance_to_parents(soup: SearchPoint) -> float:
    """Return the distance in share to the nearer parent, rounded so that mirrored ratios tie."""
    return round(min(abs(soup.share - share_of(*parent)) for parent in soup.parents), ROUNDING - 1)
