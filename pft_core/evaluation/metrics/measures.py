"""Measures of the built-in metrics: each maps one outcome to a numerator and a denominator.

A metric's value is the ratio of their sums over outcomes.
"""

from collections.abc import Mapping
from typing import Any

from pft_core.data import SIDES
from pft_core.evaluation.choices import score_all
from pft_core.evaluation.metrics.outcome import Outcome

Counts = tuple[float, float]  # numerator and denominator of one outcome


def right(outcome: Outcome, side: int) -> Counts:
    """Count *One*: whether the chosen option shows the requested pole."""
    return float(outcome.shows_only(outcome.chosen[side], side)), 1.0


def subset_score(outcome: Outcome, side: int) -> Counts:
    """Count *All*: 1 for the gold set, 0 with any wrong option, else the share of gold options chosen."""
    return score_all(outcome.chosen[side], outcome.gold(side)), 1.0


def precision(outcome: Outcome, side: int) -> Counts:
    """Count the chosen options that are gold, over the chosen options (micro-averaged)."""
    chosen = outcome.chosen[side] or frozenset()
    return float(len(chosen & outcome.gold(side))), float(len(chosen))


def recall(outcome: Outcome, side: int) -> Counts:
    """Count the gold options that are chosen, over the gold options (micro-averaged)."""
    chosen, gold = outcome.chosen[side] or frozenset(), outcome.gold(side)
    return float(len(chosen & gold)), float(len(gold))


def f1(outcome: Outcome, side: int) -> Counts:
    """Count the harmonic mean of precision and recall: 2 hits / (chosen + gold), micro-averaged."""
    chosen, gold = outcome.chosen[side] or frozenset(), outcome.gold(side)
    return 2.0 * len(chosen & gold), float(len(chosen) + len(gold))


def unparsed(outcome: Outcome, side: int) -> Counts:
    """Count whether the reply under this pole names no option."""
    return float(outcome.chosen[side] is None), 1.0


def both_right(outcome: Outcome) -> Counts:
    """Count whether the item is right under both poles."""
    return float(all(right(outcome, side)[0] for side in SIDES)), 1.0


def flip(outcome: Outcome) -> Counts:
    """Count whether the chosen pole changes when the condition changes to the other pole; 0 if a reply is unparsed."""
    first, second = outcome.chosen
    changes = any(outcome.shows_only(first, side) and outcome.shows_only(second, 1 - side) for side in SIDES)
    return float(changes), 1.0


def leak(outcome: Outcome) -> Counts:
    """Without a condition: 1 if the policy chooses the first pole, minus 1 if its base does. The metric's value is the
    absolute mean."""
    policy, base = (outcome.shows_only(c, 0) for c in (outcome.unconditioned, outcome.base_unconditioned))
    return float(policy) - float(base), 1.0


def pairs_per_s(run: Mapping[str, Any]) -> float | None:
    """Return the pairs per second of a run's median training step, or None if nothing was trained."""
    rate: float | None = run.get("pairs_per_s")
    return rate
