"""Rows of a comparison from the outcomes of all cells: means over seeds with intervals, and paired tests."""

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
    VariantValue,
)

ROUNDING = 1e-9  # smaller differences between seeds count as zero


@dataclass(frozen=True)
class MethodOutcomes:
    """Outcomes of the finished seeds of one method and variant, on the same items in the same order.

    by_seed: run id and outcomes per finished seed. num_seeds: planned seeds. is_yardstick: whether it answers only
    under conditions, and always answers.
    """

    method: str
    variant: VariantValue | None
    by_seed: Mapping[int, tuple[str, Sequence[Outcome]]]
    num_seeds: int
    is_yardstick: bool = False

    def answers(self, metric: str) -> bool:
        """Whether the method has a value of this metric."""
        return METRICS[metric].has_yardsticks or not self.is_yardstick

    @property
    def head(self) -> MethodHead:
        """Return the keys that its rows begin with."""
        return {
            "method": self.method,
            "variant": self.variant,
            "run_ids": [run_id for run_id, _ in self.by_seed.values()],
        }

    def restricted_to(self, items: Container[tuple[str, Form]]) -> "MethodOutcomes":
        """Return the same with only these items."""
        by_seed = {
            s: (run, [o for o in outcomes if item_key(o) in items]) for s, (run, outcomes) in self.by_seed.items()
        }
        return replace(self, by_seed=by_seed)

    @property
    def runs(self) -> list[Sequence[Outcome]]:
        """The outcomes of each seed."""
        return [outcomes for _, outcomes in self.by_seed.values()]


def rows_of(outcomes: MethodOutcomes, space: PreferenceSpace, metrics: Sequence[str]) -> list[ComparisonRow]:
    """Return the rows of one method and variant: each metric as mean over axes, per axis, and per pole."""
    places: list[tuple[str | None, int | None]] = [(None, None)]
    for axis in space.axes:
        places += [(axis.name, None), (axis.name, 0), (axis.name, 1)]
    rows = []
    for metric in (m for m in metrics if METRICS[m].counts_outcomes and outcomes.answers(m)):
        for name, side in places:
            table = None
            if side is None or METRICS[metric].has_poles:
                with said_of(f"method {outcomes.method}"):
                    table = count_table(outcomes.runs, metric, axis=name, side=side)
            if table is not None:
                pole = None if name is None or side is None else space.axis(name).poles[side].name
                head: RowHead = {
                    **outcomes.head,
                    "axis": name,
                    "pole": pole,
                    "metric": metric,
                    "position_baseline": by_position(outcomes, metric, name, side),
                }
                rows.append(row_of(table, head))
    return rows


def by_position(outcomes: MethodOutcomes, metric: str, axis: str | None, side: int | None) -> float | None:
    """Return the position baseline on the same items; None for a metric without one."""
    if not METRICS[metric].has_yardsticks:
        return None
    with said_of("the position baseline"):
        table = count_table([[always_by_position(o) for o in outcomes.runs[0]]], metric, axis=axis, side=side)
    return None if table is None else table.values()[0]


def row_of(table: CountTable, head: RowHead) -> ComparisonRow:
    """Make one row of a report: its head, and the mean over seeds of the counts."""
    values = table.values()
    low, high = table.interval()
    mean = float(np.mean(values))
    return {
        **head,
        "mean": mean,
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        # The absolute value of a mean near zero is larger in resamples than in the sample.
        "low": min(low, mean),
        "high": max(high, mean),
        "n_items": len(table.scenarios),
        "n_seeds": len(values),
    }


def significance_against(
    reference: MethodOutcomes, others: Sequence[MethodOutcomes], space: PreferenceSpace
) -> list[PairedTest]:
    """Test the reference against each other method on the tested metrics, over the seeds that both finished."""
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
    # A metric per pole counts two answers per item, which are not independent, so McNemar's test does not apply.
    return paired_tests(ours, theirs, head, items_decide=METRICS[metric].of == "pair")


def paired_tests(ours: CountTable, theirs: CountTable, head: PairHead, *, items_decide: bool) -> list[PairedTest]:
    """Test two methods on the same seeds, with a paired t-test and sign flips over them.

    With one seed, or if all seeds give the same difference, seeds say nothing about chance. Then use McNemar's test on
    the items of the first pair of runs if items_decide, else no test.
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
    """Pair the seeds that both finished; a method without seeds is paired with each seed of the reference."""
    common = [(seed, seed) for seed in reference.by_seed if seed in other.by_seed]
    if common or len(other.by_seed) != 1:
        return common
    (only_seed,) = other.by_seed
    return [(seed, only_seed) for seed in reference.by_seed]


def holm_corrected(tests: Sequence[PairedTest]) -> list[CorrectedTest]:
    """Add `p_holm`: corrected over the tests of one metric, separately for means over axes and single axes.

    Sign flips repeat the paired t-tests, so they are a separate family.
    """
    families: dict[Hashable, list[int]] = {}
    for i, test in enumerate(tests):
        family = test["test"] == "permutation", test["metric"], test["axis"] is None
        families.setdefault(family, []).append(i)
    adjusted: dict[int, float] = {}
    for places in families.values():
        adjusted |= dict(zip(places, holm([tests[i]["p"] for i in places]), strict=True))
    return [{**test, "p_holm": adjusted[i]} for i, test in enumerate(tests)]


def run_rows(metric: str, values_by_method: Sequence[tuple[MethodOutcomes, Sequence[float]]]) -> list[ComparisonRow]:
    """Make one row per method and variant: the mean over seeds of a metric measured on whole runs."""
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
        for f, values in values_by_method
        if values
    ]


def on_common_items(outcomes: Sequence[MethodOutcomes]) -> tuple[list[MethodOutcomes], list[str]]:
    """Keep the items that every run of a variant answered, so that rows compare; note what each method left out.

    Raises UserError if no item is left.
    """
    keys = {id(run): [item_key(o) for o in run] for f in outcomes for run in f.runs}
    common = set.intersection(*map(set, keys.values()))
    num_items = max(map(len, keys.values()))
    if not common:
        raise UserError("no test item fits every method: raise encoding.max_length")
    fewest = {f.method: len(min(f.runs, key=len)) for f in outcomes}
    skipped = [f"{method} skipped {num_items - n}" for method, n in fewest.items() if n < num_items]
    share = f"{num_items - len(common)} of {num_items} questions"
    note = f"{share} are too long and not counted in any number: {'; '.join(skipped)}."
    return [f.restricted_to(common) for f in outcomes], [note] if len(common) < num_items else []


def item_key(outcome: Outcome) -> tuple[str, Form]:
    return outcome.item_id, outcome.form
