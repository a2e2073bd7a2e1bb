"""From the outcomes of all cells to the rows of a comparison: means over seeds with intervals, and tests."""

from collections.abc import Container, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pft_core.data import Form, PreferenceSpace
from pft_core.errors import UserError, said_of
from pft_core.evaluation import (
    METRICS,
    CountTable,
    Outcome,
    always_by_position,
    count_table,
    holm,
    mcnemar,
    metrics_where,
    paired_t,
    pairs_first,
    sign_flip,
)
from pipelines.compare.statistics.row_schema import (
    ComparisonRow,
    CorrectedTest,
    MethodHead,
    PairedTest,
    PairHead,
    RowHead,
    VariedKnob,
)

ROUNDING = 1e-9  # differences between seeds below it are none


@dataclass(frozen=True)
class MethodOutcomes:
    """What the finished seeds of one method and variant chose, on the same items in the same order.

    by_seed: per finished seed its run id and outcomes. num_seeds: how many were to run. is_yardstick: whether it is
    asked under conditions only, and always answers.
    """

    method: str
    variant: VariedKnob | None
    by_seed: Mapping[int, tuple[str, Sequence[Outcome]]]
    num_seeds: int
    is_yardstick: bool = False

    def answers(self, metric: str) -> bool:
        """Whether the method has a value of this metric."""
        return METRICS[metric].has_baseline or not self.is_yardstick

    @property
    def head(self) -> MethodHead:
        """What its rows begin with."""
        return {
            "method": self.method,
            "variant": self.variant,
            "run_ids": [run_id for run_id, _ in self.by_seed.values()],
        }

    def kept(self, items: Container[tuple[str, Form]]) -> "MethodOutcomes":
        """The same of these items alone."""
        by_seed = {
            s: (run, [o for o in outcomes if item_key(o) in items]) for s, (run, outcomes) in self.by_seed.items()
        }
        return replace(self, by_seed=by_seed)

    @property
    def runs(self) -> list[Sequence[Outcome]]:
        """The outcomes of each seed."""
        return [outcomes for _, outcomes in self.by_seed.values()]


def rows_of(found: MethodOutcomes, space: PreferenceSpace, metrics: Sequence[str]) -> list[ComparisonRow]:
    """The rows of one method and variant: each metric on the mean of axes, and per axis and pole."""
    places: list[tuple[str | None, int | None]] = [(None, None)]
    for axis in space.axes:
        places += [(axis.name, None), (axis.name, 0), (axis.name, 1)]
    rows = []
    for metric in (m for m in metrics if METRICS[m].counts_outcomes and found.answers(m)):
        for name, side in places:
            counted = None
            if side is None or METRICS[metric].has_poles:
                with said_of(f"method {found.method}"):
                    counted = count_table(found.runs, metric, axis=name, side=side)
            if counted is not None:
                pole = None if name is None or side is None else space.axis(name).poles[side].name
                head: RowHead = {
                    **found.head,
                    "axis": name,
                    "pole": pole,
                    "metric": metric,
                    "position_baseline": by_position(found, metric, name, side),
                }
                rows.append(row_of(counted, head))
    return rows


def by_position(found: MethodOutcomes, metric: str, axis: str | None, side: int | None) -> float | None:
    """What position alone reaches on the same items; None for a metric that it has no part in."""
    if not METRICS[metric].has_baseline:
        return None
    with said_of("what position alone chooses"):
        counted = count_table([[always_by_position(o) for o in found.runs[0]]], metric, axis=axis, side=side)
    return None if counted is None else counted.values()[0]


def row_of(counted: CountTable, head: RowHead) -> ComparisonRow:
    """One row of a report: what it is of, and the mean over seeds of what was counted."""
    values = counted.values()
    low, high = counted.interval()
    mean = float(np.mean(values))
    return {
        **head,
        "mean": mean,
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        # The size of a mean near zero is larger in resamples than in the sample.
        "low": min(low, mean),
        "high": max(high, mean),
        "n_items": len(counted.scenarios),
        "n_seeds": len(values),
    }


def significance_against(
    reference: MethodOutcomes, others: Sequence[MethodOutcomes], space: PreferenceSpace
) -> list[PairedTest]:
    """Test the reference against each other method on the metrics that say so, over the seeds that both finished."""
    axes: list[str | None] = [None, *(axis.name for axis in space.axes)]
    return [
        test
        for other in others
        for metric in pairs_first(metrics_where(is_tested=True))
        for axis in axes
        for test in _tests(reference, other, metric, axis)
    ]


def _tests(reference: MethodOutcomes, other: MethodOutcomes, metric: str, axis: str | None) -> list[PairedTest]:
    seeds = paired_seeds(reference, other)
    if not seeds:
        return []
    pairs = [(reference.by_seed[a][1], other.by_seed[b][1]) for a, b in seeds]
    run_ids = [run for a, b in seeds for run in (reference.by_seed[a][0], other.by_seed[b][0])]
    with said_of(f"methods {reference.method} and {other.method}"):
        ours, theirs = (count_table([pair[i] for pair in pairs], metric, axis=axis, side=None) for i in (0, 1))
    if ours is None or theirs is None:
        return []
    head: PairHead = {
        "a": reference.method,
        "b": other.method,
        "metric": metric,
        "axis": axis,
        "pole": None,
        "variant": reference.variant,
        "run_ids": list(dict.fromkeys(run_ids)),
    }
    # Under poles an item is two answers, which are not independent: McNemar's test is not for them.
    return compared(ours, theirs, head, items_decide=METRICS[metric].of == "pair")


def compared(ours: CountTable, theirs: CountTable, head: PairHead, *, items_decide: bool) -> list[PairedTest]:
    """Test two methods on the same seeds: paired t and sign flips over them.

    With one seed, or where all seeds differ by the same, seeds say nothing of chance: McNemar on the items of the first
    pair of runs, if items_decide, else no test.
    """
    differences = np.subtract(ours.values(), theirs.values())
    mean, num = float(differences.mean()), len(differences)
    if np.ptp(differences) < ROUNDING and (num == 1 or abs(differences[0]) > ROUNDING):
        if not items_decide:
            return []
        p = mcnemar(ours.numerators_SN[0] > 0, theirs.numerators_SN[0] > 0)
        return [{**head, "difference": mean, "n": len(ours.scenarios), "test": "mcnemar", "p": p}]
    return [
        {**head, "difference": mean, "n": num, "test": "paired_t", "p": paired_t(differences)},
        {**head, "difference": mean, "n": num, "test": "permutation", "p": sign_flip(differences)},
    ]


def paired_seeds(reference: MethodOutcomes, other: MethodOutcomes) -> list[tuple[int, int]]:
    """The seeds that both finished; a method without seeds is held against each of the reference's."""
    common = [(seed, seed) for seed in reference.by_seed if seed in other.by_seed]
    if common or len(other.by_seed) != 1:
        return common
    (lone,) = other.by_seed
    return [(seed, lone) for seed in reference.by_seed]


def corrected(tests: Sequence[PairedTest]) -> list[CorrectedTest]:
    """Add `p_holm`: over the tests of one metric, those of means over axes apart from single axes'.

    Sign flips, which test again what paired t has tested, are a family of their own.
    """
    families: dict[Hashable, list[int]] = {}
    for i, test in enumerate(tests):
        family = test["test"] == "permutation", test["metric"], test["axis"] is None
        families.setdefault(family, []).append(i)
    adjusted: dict[int, float] = {}
    for places in families.values():
        adjusted |= dict(zip(places, holm([tests[i]["p"] for i in places]), strict=True))
    return [{**test, "p_holm": adjusted[i]} for i, test in enumerate(tests)]


def run_rows(metric: str, found: Sequence[tuple[MethodOutcomes, Sequence[float]]]) -> list[ComparisonRow]:
    """One row a method and variant: the mean over seeds of what a metric has measured of each run."""
    return [
        {
            **f.head,
            "axis": None,
            "pole": None,
            "metric": metric,
            "position_baseline": None,
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "low": None,
            "high": None,
            "n_items": None,
            "n_seeds": len(values),
        }
        for f, values in found
        if values
    ]


def on_common_items(found: Sequence[MethodOutcomes]) -> tuple[list[MethodOutcomes], list[str]]:
    """Keep the items that every run of a variant answered, so that rows compare; say, by method, what was left out.

    Raises UserError where no item is left.
    """
    answered = {id(run): [item_key(o) for o in run] for f in found for run in f.runs}
    everywhere = set.intersection(*map(set, answered.values()))
    asked = max(map(len, answered.values()))
    if not everywhere:
        raise UserError("no test item was answered by every method: raise encoding.max_length")
    short = {f.method: len(min(f.runs, key=len)) for f in found}
    said = [f"{method} could not be asked {asked - n}" for method, n in short.items() if n < asked]
    note = f"{asked - len(everywhere)} of {asked} questions are in no number, as they are too long: {'; '.join(said)}."
    return [f.kept(everywhere) for f in found], [note] if len(everywhere) < asked else []


def item_key(outcome: Outcome) -> tuple[str, Form]:
    return outcome.item_id, outcome.form
