"""The measures of the shipped metrics: one outcome in, numerator and denominator out; a value is the ratio of sums."""

from collections.abc import Mapping
from typing import Any

from pft_core.data import SIDES
from pft_core.evaluation.choices import score_all
from pft_core.evaluation.metrics.outcome import Outcome

Counts = tuple[float, float]  # numerator and denominator of one outcome


def right(outcome: Outcome, side: int) -> Counts:
    """*One*: the chosen option shows the target pole."""
    return float(outcome.shows_only(outcome.chosen[side], side)), 1.0


def subset_score(outcome: Outcome, side: int) -> Counts:
    """*All*: 1 for the gold set, 0 with any wrong option, else the share found."""
    return score_all(outcome.chosen[side], outcome.gold(side)), 1.0


def precision(outcome: Outcome, side: int) -> Counts:
    """Chosen options that are gold, over the options chosen (micro-averaged)."""
    chosen = outcome.chosen[side] or frozenset()
    return float(len(chosen & outcome.gold(side))), float(len(chosen))


def recall(outcome: Outcome, side: int) -> Counts:
    """Gold options that were chosen, over the gold options (micro-averaged)."""
    chosen, gold = outcome.chosen[side] or frozenset(), outcome.gold(side)
    return float(len(chosen & gold)), float(len(gold))


def f1(outcome: Outcome, side: int) -> Counts:
    """Harmonic mean of the two above: 2 hits / (chosen + gold), micro-averaged."""
    chosen, gold = outcome.chosen[side] or frozenset(), outcome.gold(side)
    return 2.0 * len(chosen & gold), float(len(chosen) + len(gold))


def unparsed(outcome: Outcome, side: int) -> Counts:
    """The reply under this pole names no option."""
    return float(outcome.chosen[side] is None), 1.0


def both_right(outcome: Outcome) -> Counts:
    """Right under both poles."""
    return float(all(right(outcome, side)[0] for side in SIDES)), 1.0


def flip(outcome: Outcome) -> Counts:
    """The chosen pole changes when the condition changes to the opposite; unparsed under either: it does not."""
    first, second = outcome.chosen
    changes = any(outcome.shows_only(first, side) and outcome.shows_only(second, 1 - side) for side in SIDES)
    return float(changes), 1.0


def leak(outcome: Outcome) -> Counts:
    """With no condition: does the policy choose the first pole, minus does its base (the value is the mean's size)."""
    policy, base = (outcome.shows_only(c, 0) for c in (outcome.unconditioned, outcome.base_unconditioned))
    return float(policy) - float(base), 1.0


def pairs_per_s(run: Mapping[str, Any]) -> float | None:
    """Pairs a second of a training's median step; None where nothing was trained."""
    rate: float | None = run.get("pairs_per_s")
    return rate
