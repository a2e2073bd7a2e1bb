"""From what a policy chose to the rows of a report: each metric with n, interval, position baseline, unparsed share.

A metric is a function that gives one outcome's numerator and denominator; its value is the ratio of the sums.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pft_core.data import SIDES, Axis, Form, PreferenceSpace
from pft_core.evaluation.choices import score_all
from pft_core.evaluation.statistics import interval, ratio

Choice = frozenset[int] | None  # indices of the chosen options in shown order; None: no parsable choice


@dataclass(frozen=True)
class Outcome:
    """What a policy chose for one item (a record under one form of question).

    scenario: what bootstrap clusters are made of; sides: side of each option as shown; chosen: under the first and
    the second pole; unconditioned, base_unconditioned: without a condition, by the policy and by its base (form `one`).
    """

    item_id: str
    scenario: str
    axis: str
    form: Form
    sides: tuple[int, ...]
    chosen: tuple[Choice, Choice]
    unconditioned: Choice = None
    base_unconditioned: Choice = None

    def gold(self, side: int) -> frozenset[int]:
        return frozenset(i for i, s in enumerate(self.sides) if s == side)

    def shows_only(self, choice: Choice, side: int) -> bool:
        """Return whether all that was chosen shows this side; False for an unparsed choice."""
        return choice is not None and choice <= self.gold(side)

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=sorted)

    @staticmethod
    def from_json(text: str) -> "Outcome":
        raw = json.loads(text)
        raw["sides"] = tuple(raw["sides"])
        raw["chosen"] = tuple(_choice(indices) for indices in raw["chosen"])
        for key in ("unconditioned", "base_unconditioned"):
            raw[key] = _choice(raw[key])
        return Outcome(**raw)


def _choice(indices: list[int] | None) -> Choice:
    return None if indices is None else frozenset(indices)


def right(outcome: Outcome, side: int) -> tuple[float, float]:
    """*One*: the chosen option shows the target pole."""
    return float(outcome.shows_only(outcome.chosen[side], side)), 1.0


def subset_score(outcome: Outcome, side: int) -> tuple[float, float]:
    """*All*: 1 for the gold set, 0 with any wrong option, else the share found."""
    return score_all(outcome.chosen[side], outcome.gold(side)), 1.0


def precision(outcome: Outcome, side: int) -> tuple[float, float]:
    """Chosen options that are gold, over the options chosen (micro-averaged)."""
    chosen = outcome.chosen[side] or frozenset()
    return float(len(chosen & outcome.gold(side))), float(len(chosen))


def recall(outcome: Outcome, side: int) -> tuple[float, float]:
    """Gold options that were chosen, over the gold options (micro-averaged)."""
    chosen, gold = outcome.chosen[side] or frozenset(), outcome.gold(side)
    return float(len(chosen & gold)), float(len(gold))


def f1(outcome: Outcome, side: int) -> tuple[float, float]:
    """Harmonic mean of the two above: 2 hits / (chosen + gold), micro-averaged."""
    chosen, gold = outcome.chosen[side] or frozenset(), outcome.gold(side)
    return 2.0 * len(chosen & gold), float(len(chosen) + len(gold))


def both_right(outcome: Outcome) -> tuple[float, float]:
    """Right under both poles."""
    return float(all(right(outcome, side)[0] for side in SIDES)), 1.0


def flip(outcome: Outcome) -> tuple[float, float]:
    """The chosen pole changes when the condition changes to the opposite; unparsed under either: it does not."""
    first, second = outcome.chosen
    changes = any(outcome.shows_only(first, side) and outcome.shows_only(second, 1 - side) for side in SIDES)
    return float(changes), 1.0


def leak(outcome: Outcome) -> tuple[float, float]:
    """With no condition: does the policy choose the first pole, minus does its base (the value is the mean's size)."""
    policy, base = (outcome.shows_only(c, 0) for c in (outcome.unconditioned, outcome.base_unconditioned))
    return float(policy) - float(base), 1.0


POLE_METRICS: dict[Form, dict[str, Callable[[Outcome, int], tuple[float, float]]]] = {
    "one": {"one": right},
    "all": {"all": subset_score, "precision": precision, "recall": recall, "f1": f1},
}
PAIR_METRICS = {"both_right": both_right, "flip": flip}


def report_rows(
    outcomes: Iterable[Outcome], *, policy: str, space: PreferenceSpace, trained_poles: Mapping[str, set[int]] | None
) -> list[dict[str, Any]]:
    """Return the rows of one policy, in the order of the space's axes; the order of the outcomes does not matter.

    trained_poles: the sides of each axis that the policy was trained on; None: not known.
    """
    groups: dict[tuple[str, Form], list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda o: o.item_id):
        groups.setdefault((outcome.axis, outcome.form), []).append(outcome)
    rows = []
    for axis in space.axes:
        sides = None if trained_poles is None else trained_poles.get(axis.name, set())
        for form in POLE_METRICS:
            if group := groups.get((axis.name, form)):
                rows += [{"policy": policy, "axis": axis.name, **row} for row in _axis_rows(group, axis, form, sides)]
    return rows


def _axis_rows(group: Sequence[Outcome], axis: Axis, form: Form, trained: set[int] | None) -> list[dict[str, Any]]:
    by_position = [always_by_position(outcome) for outcome in group]
    rows = []
    for side in SIDES:
        head = {"pole": axis.poles[side].name, "trained_pole": None if trained is None else side in trained}
        unparsed = [outcome.chosen[side] is None for outcome in group]
        for metric, measure in POLE_METRICS[form].items():
            counts = [measure(outcome, side) for outcome in group]
            rows.append({**head, **_row(metric, group, counts, [measure(o, side) for o in by_position], unparsed)})
    if form == "one":
        head = {"pole": None, "trained_pole": None}
        unparsed = [choice is None for outcome in group for choice in outcome.chosen]
        for metric, pair_measure in PAIR_METRICS.items():
            counts = [pair_measure(outcome) for outcome in group]
            rows.append({**head, **_row(metric, group, counts, [pair_measure(o) for o in by_position], unparsed)})
        unparsed = [outcome.unconditioned is None for outcome in group]
        rows.append({**head, **_row("leak", group, [leak(o) for o in group], None, unparsed)})
    return rows


def always_by_position(outcome: Outcome) -> Outcome:
    """Return the outcome of the policy that reads nothing: first option for the first pole, second for the second."""
    return replace(outcome, chosen=(frozenset({0}), frozenset({1})))


def _row(
    metric: str,
    group: Sequence[Outcome],
    counts: Sequence[tuple[float, float]],
    baseline: Sequence[tuple[float, float]] | None,
    unparsed: Sequence[bool],
) -> dict[str, Any]:
    numerators, denominators = zip(*counts, strict=True)
    absolute = metric == "leak"
    low, high = interval(numerators, denominators, [o.scenario for o in group], absolute=absolute)
    return {
        "metric": metric,
        "value": ratio(numerators, denominators, absolute=absolute),
        "n": len(group),
        "low": low,
        "high": high,
        "position_baseline": None if baseline is None else ratio(*zip(*baseline, strict=True)),
        "unparsed": sum(unparsed) / len(unparsed),
    }
