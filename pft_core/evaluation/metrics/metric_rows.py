"""Report rows from a policy's outcomes: each metric with n, interval, position baseline and unparsed share.

A metric maps each outcome to a numerator and a denominator; its value is the ratio of their sums.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NotRequired, TypedDict

from pft_core.data import SIDES, Axis, Form, PreferenceSpace
from pft_core.errors import said_of
from pft_core.evaluation.intervals import interval, ratio
from pft_core.evaluation.metrics.measuring import counts_of
from pft_core.evaluation.metrics.metric import Metric
from pft_core.evaluation.metrics.outcome import Outcome, always_by_position
from pft_core.evaluation.metrics.registry import METRICS, metrics_where


class EvaluationRow(TypedDict):
    """One metric or task of a policy, as in report.json. low, high: the 95% interval.

    n, num_scenarios: the numbers of items, and of the distinct scenarios that the interval draws; older reports and
    rows of tasks lack the latter.

    axis, pole: None if the row covers all of them. trained_pole: whether the policy was trained on the pole; None over
    both poles, or if the training is unknown. position_baseline: the value that position alone reaches, None if that is
    meaningless. unparsed: the share of unparsed answers. part: in a report of several data sets, the name of the row's.
    """

    policy: str
    axis: str | None
    pole: str | None
    trained_pole: bool | None
    metric: str
    value: float
    n: int
    num_scenarios: NotRequired[int]
    low: float
    high: float
    position_baseline: float | None
    unparsed: float
    part: NotRequired[str]


def report_rows(
    outcomes: Iterable[Outcome], *, policy: str, space: PreferenceSpace, trained_poles: Mapping[str, set[int]] | None
) -> list[EvaluationRow]:
    """Return the rows of one policy in the order of the space's axes, whatever the order of the outcomes.

    trained_poles: the sides of each axis that the policy was trained on, None if unknown.
    """
    groups: dict[tuple[str, Form], list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda o: o.item_id):
        groups.setdefault((outcome.axis, outcome.form), []).append(outcome)
    rows = []
    for axis in space.axes:
        sides = None if trained_poles is None else trained_poles.get(axis.name, set())
        for form in dict.fromkeys(METRICS[name].form for name in METRICS):
            if group := groups.get((axis.name, form)):
                with said_of(f"policy {policy}"):
                    metrics = _metrics_and_sides(form, len(axis.poles))
                    rows += [_row(policy, axis, sides, name, group, side) for name, side in metrics]
    return rows


def _metrics_and_sides(form: Form, num_poles: int) -> list[tuple[str, int | None]]:
    """Return the metrics of a form: first those of each side, then those over both sides (None)."""
    names = metrics_where(form=form, counts_outcomes=True, in_evaluation=True)
    sides = SIDES[:num_poles]
    of_poles: list[tuple[str, int | None]] = [(n, side) for side in sides for n in names if METRICS[n].has_poles]
    return of_poles + [(name, None) for name in names if not METRICS[name].has_poles and num_poles > 1]


def _row(
    policy: str, axis: Axis, trained: set[int] | None, name: str, group: Sequence[Outcome], side: int | None
) -> EvaluationRow:
    metric = METRICS[name]
    under = () if side is None else (side,)
    numerators, denominators = zip(*(counts_of(name, outcome, *under) for outcome in group), strict=True)
    scenarios = [outcome.scenario for outcome in group]
    low, high = interval(numerators, denominators, scenarios, absolute=metric.is_size)
    positioned = [always_by_position(outcome) for outcome in group if metric.has_yardsticks]
    by_position = [counts_of(name, outcome, *under) for outcome in positioned]
    unparsed = [choice is None for outcome in group for choice in _choices(outcome, metric, side)]
    return {
        "policy": policy,
        "axis": axis.name,
        "pole": None if side is None else axis.poles[side].name,
        "trained_pole": None if side is None or trained is None else side in trained,
        "metric": name,
        "value": ratio(numerators, denominators, absolute=metric.is_size),
        "n": len(group),
        "num_scenarios": len(set(scenarios)),
        "low": low,
        "high": high,
        "position_baseline": ratio(*zip(*by_position, strict=True)) if metric.has_yardsticks else None,
        "unparsed": sum(unparsed) / len(unparsed),
    }


def _choices(outcome: Outcome, metric: Metric, side: int | None) -> Sequence[object]:
    """Return the choices of an outcome that the metric reads."""
    if metric.needs_base:
        return (outcome.unconditioned,)
    return outcome.chosen if side is None else (outcome.chosen[side],)
