"""Differences between two evaluations of the same items, with paired tests."""

# 2 evaluations, N items, C scenarios

from collections.abc import Hashable, Iterator
from dataclasses import replace

import numpy as np

from pft_core.evaluation import METRICS, CountTable, count_table, holm, mcnemar, metrics_where, paired_t, pairs_first
from pipelines.compare.outcomes.evaluation import Evaluation
from pipelines.reporting import Difference

Place = tuple[str, str | None, str | None]  # metric, axis, pole; None: over all


def differences_of(a: Evaluation, b: Evaluation) -> list[Difference]:
    """Return a row for each metric, over all axes and on each axis and pole.

    Holm's correction covers the p values of one metric, separately for all axes together and single ones.
    """
    rows = [difference(place, table) for place, table in count_tables(a, b)]
    families: dict[Hashable, list[int]] = {}
    for number, row in enumerate(rows):
        if row["p"] is not None:
            families.setdefault((row["metric"], row["axis"] is None), []).append(number)
    for numbers in families.values():
        for number, adjusted in zip(numbers, holm([rows[i]["p"] or 0.0 for i in numbers]), strict=True):
            rows[number]["p_holm"] = adjusted
    return rows


def difference(place: Place, both: CountTable) -> Difference:
    """Compare the two runs of a table; the difference is the first minus the second."""
    metric, axis, pole = place
    a, b = both.values()
    test, p, interval = test_and_interval(both)
    return {
        "metric": metric,
        "axis": axis,
        "pole": pole,
        "n": len(both.scenarios),
        "a": a,
        "b": b,
        "difference": a - b,
        "low": interval and interval[0],
        "high": interval and interval[1],
        "test": test,
        "p": p,
        "p_holm": None,
    }


def test_and_interval(both: CountTable) -> tuple[str | None, float | None, tuple[float, float] | None]:
    """Return the test, its p value, and the 95% interval of the difference.

    McNemar's test needs right-or-wrong items, each of its own scenario. If items share scenarios they are not
    independent, and shares are not counts; then use a paired t-test over scenarios. None if the metric is an absolute
    value of a ratio, or if the two runs have different denominators.
    """
    numerators_2N, denominators_2N = both.numerators_SN, both.denominators_SN
    if both.absolute or not np.array_equal(*denominators_2N):
        return None, None, None
    gain = replace(both, numerators_SN=numerators_2N[:1] - numerators_2N[1:], denominators_SN=denominators_2N[:1])
    interval = gain.interval() if fewest_scenarios(both) > 1 else None
    is_right_or_wrong = np.isin(numerators_2N, (0, 1)).all() and (denominators_2N == 1).all()
    if is_right_or_wrong and len(set(both.scenarios)) == len(both.scenarios):
        return "mcnemar", mcnemar(*(numerators_2N > 0)), interval
    return "paired_t", paired_t(by_scenario(gain)), interval


def fewest_scenarios(table: CountTable) -> int:
    """Return the number of scenarios of the axis with the fewest."""
    of_axis: dict[str, set[str]] = {}
    for axis, scenario in zip(table.axes, table.scenarios, strict=True):
        of_axis.setdefault(axis, set()).add(scenario)
    return min(map(len, of_axis.values()))


def by_scenario(gain: CountTable) -> list[float]:
    """Return what each scenario adds to the difference [C]."""
    sums: dict[str, float] = {}
    for scenario, value in zip(gain.scenarios, gain.numerators_SN[0], strict=True):
        sums[scenario] = sums.get(scenario, 0.0) + float(value)
    return list(sums.values())


def count_tables(a: Evaluation, b: Evaluation) -> Iterator[tuple[Place, CountTable]]:
    """Count both evaluations at every place with items: over all axes first, then by axis and pole."""
    return of_records(a, b) if a.outcomes else of_task(a, b)


def of_records(a: Evaluation, b: Evaluation) -> Iterator[tuple[Place, CountTable]]:
    reported = {row["metric"] for row in a.rows} & {row["metric"] for row in b.rows}
    for metric in pairs_first(metrics_where(counts_outcomes=True, in_evaluation=True)):
        for axis, pole, side in places_of(a, has_poles=METRICS[metric].has_poles) if metric in reported else ():
            table = count_table([a.outcomes, b.outcomes], metric, axis=axis, side=side)
            if table is not None:
                yield (metric, axis, pole), table


def places_of(a: Evaluation, *, has_poles: bool) -> list[tuple[str | None, str | None, int | None]]:
    """List all axes together, then each axis, or each of its poles with its side in the order of its rows."""
    places: list[tuple[str | None, str | None, int | None]] = [(None, None, None)]
    for axis in dict.fromkeys(row["axis"] for row in a.rows):
        poles = dict.fromkeys(row["pole"] for row in a.rows if row["axis"] == axis and row["pole"] is not None)
        places += [(axis, pole, side) for side, pole in enumerate(poles)] if has_poles else [(axis, None, None)]
    return places


def of_task(a: Evaluation, b: Evaluation) -> Iterator[tuple[Place, CountTable]]:
    groups = list(dict.fromkeys((item.axis, item.side) for item in a.scored_items))
    reported = {(row["axis"], row["pole"]) for row in a.rows}
    if len(groups) > 1 and (None, None) not in reported:
        yield (a.task, None, None), table_of(a, b, groups)
    for group, row in zip(groups, a.rows, strict=True):
        yield (a.task, row["axis"], row["pole"]), table_of(a, b, [group])


def table_of(a: Evaluation, b: Evaluation, groups: list[tuple[str | None, int | None]]) -> CountTable:
    """Count a task's scores for some axes and sides; an unparsed reply scores 0."""
    score_of = {item.key: item.score or 0.0 for item in b.scored_items}
    items = [item for item in a.scored_items if (item.axis, item.side) in groups]
    scores_2N = np.array([[i.score or 0.0 for i in items], [score_of[i.key] for i in items]], dtype=np.float64)
    scenarios, axes = tuple(item.scenario for item in items), tuple(item.axis or "" for item in items)
    return CountTable(scores_2N, np.ones_like(scores_2N), scenarios, axes)
