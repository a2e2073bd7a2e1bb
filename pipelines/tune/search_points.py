"""What a search tries: points of (alpha, beta) and other changes, and which of them answers which cell of the grid.

Under AdamW with clipping only the ratio of alpha and beta moves a result, so cells of one ratio share one training.
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
SUM = 2.0  # of alpha and beta where the grid does not give both: that of the recipes' 1 and 1
ROUNDING = 12  # digits in which two ratios are the same


@dataclass(frozen=True)
class SearchPoint:
    """One thing to try. changes: dotted keys of the run config.

    parents, weights: of a soup, the trained points that it is made from, as (alpha, beta), and their shares.
    """

    alpha: float
    beta: float
    source: Source = "trained"
    changes: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[tuple[float, float], ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def share(self) -> float:
        """Of the first side: alpha / (alpha + beta), rounded to what tells two ratios apart."""
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
    """How far a ratio is from equal weights, in share; of the base, as far as can be."""
    return 0.5 if point.source == "base" else abs(point.share - 0.5)


def log_ratio(alpha: float, beta: float) -> float | str | None:
    """t = log(alpha / beta) as JSON can hold it: "-inf" and "inf" at the ends, None for the base (0, 0)."""
    if alpha == beta == 0:
        return None
    if alpha == 0 or beta == 0:
        return "inf" if alpha else "-inf"
    return math.log(alpha / beta)


def ratio_name(t: float | str | None) -> str:
    """Write alpha : beta with the smaller one as 1, such as 1:8, 1:1, 2.5:1; 0:1 and 1:0 are one side alone."""
    if t is None:
        return "base"
    place = float(t)
    if math.isinf(place):
        return "1:0" if place > 0 else "0:1"
    larger = math.exp(abs(place))
    text = f"{larger:.3g}" if larger < 1000 else f"{larger:.0f}"
    return f"{text}:1" if place > 0 else f"1:{text}"


def at_log_ratio(t: float) -> tuple[float, float]:
    """The weights of a ratio, adding up to SUM."""
    share = 1 / (1 + math.exp(-t))
    return SUM * share, SUM * (1 - share)


def grid_cells(search: SearchSettings) -> list[tuple[float, float]]:
    """Return every combination of the search's alphas and betas."""
    return list(product(sorted(set(search.alphas)), sorted(set(search.betas))))


def distinct_ratios(cells: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """One cell of each ratio, by rising share of the first side: the one whose weights add up to nearest SUM."""
    by_share: dict[float, tuple[float, float]] = {}
    for cell in sorted(cells, key=lambda c: (abs(math.log(sum(c) / SUM)) if sum(c) else 0.0, c)):
        if any(cell):
            by_share.setdefault(share_of(*cell), cell)
    return [by_share[share] for share in sorted(by_share)]


def grid_points(search: SearchSettings) -> list[SearchPoint]:
    """A training for each ratio and each combination of the other choices, and the base where the grid has (0, 0).

    Raises UserError for a range, which a grid cannot walk.
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
    """Trainings at both ends and in the middle, and a soup for every ratio between; parents stand before their soups.

    Raises UserError where the grid has no ratio between its ends, or other choices are to be tried: weights from
    trainings of different kinds do not mix.
    """
    if search.space:
        raise UserError("search.space: a soup mixes trainings that differ in their ratio alone: use another --mode")
    cells = grid_cells(search)
    ratios = distinct_ratios(cells)
    if len(ratios) < 3:
        raise UserError(f"search: soups need at least 3 ratios, the grid has {len(ratios)}: add alphas or betas")
    first, *inner, last = ratios
    middle = min(inner, key=lambda c: abs(share_of(*c) - 0.5))
    knots = [first, middle, last]
    soups = [soup_of(cell, knots) for cell in inner if cell != middle]
    # The middle and one end first: the soups between them need not wait for the other end.
    return [*(SearchPoint(a, b) for a, b in (middle, first, last)), *soups, *base_points(cells)]


def soup_of(cell: tuple[float, float], knots: Sequence[tuple[float, float]]) -> SearchPoint:
    """The mix of its two neighbours among the trained ratios whose weights are linear in the share."""
    by_share = {share_of(*knot): knot for knot in knots}
    (low, weight_low), (high, weight_high) = between(share_of(*cell), list(by_share))
    return SearchPoint(*cell, "soup", parents=(by_share[low], by_share[high]), weights=(weight_low, weight_high))


def verification_points(points: Sequence[SearchPoint], number: int) -> list[SearchPoint]:
    """Real trainings at the ratios of the soups that are farthest from what was trained."""
    soups = [point for point in points if point.source == "soup"]
    return [
        SearchPoint(soup.alpha, soup.beta) for soup in sorted(soups, key=distance_to_parents, reverse=True)[:number]
    ]


def distance_to_parents(soup: SearchPoint) -> float:
    """To the nearer one, in share; rounded, so that ratios that mirror each other keep their order."""
    return round(min(abs(soup.share - share_of(*parent)) for parent in soup.parents), ROUNDING - 1)
