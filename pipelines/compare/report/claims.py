"""What a comparison's rows and tests say, in sentences. Nothing is said that a row, a test or a run does not hold."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pft_core.evaluation import METRICS, YARDSTICKS, Yardstick
from pipelines.compare.report.comparison_schema import ComparisonReport, RunLine
from pipelines.compare.statistics import AREA, ComparisonRow, CorrectedTest

LEVEL = 0.05  # of significance, after Holm's correction
PLUS_MINUS, REACHES, BELOW, MISSING = "\u00b1", "\u2020", "\u2021", "\u2013"
TESTS = {"paired_t": "paired t over {} seeds", "mcnemar": "McNemar on {} items"}  # the tests that a verdict rests on


def method_label(method: str) -> str:
    """What a method is called in a table."""
    return YARDSTICKS[method].label if method in YARDSTICKS else method


def value_of(variant: Any) -> Any:
    """A row names what varies beside its value; a run and a curve may hold the bare value."""
    return variant["value"] if isinstance(variant, Mapping) else variant


class Comparison:
    """A report's rows, found by method, place and variant.

    methods: in the order of the rows, then those that only failed. variants: their values, [None] where none vary.
    """

    def __init__(self, report: ComparisonReport) -> None:
        self.report = report
        self.rows = report["rows"]
        self.runs = report["runs"]
        self.methods = _distinct(row["method"] for row in [*self.rows, *self.runs])
        of_one = [row for row in self.rows if row["metric"] != AREA]
        self.variants = _distinct(value_of(row["variant"]) for row in [*of_one, *self.runs]) or [None]
        self.varies = next((told["name"] for row in self.rows if (told := row["variant"])), "variant")
        self.metrics = [m for m in METRICS if any(row["metric"] == m for row in self.rows)]
        self.reference: str = report["config"].get("reference", "pft")
        self._rows = {
            (row["method"], row["metric"], row["axis"], row["pole"], value_of(row["variant"])): row for row in self.rows
        }

    @property
    def opponents(self) -> list[str]:
        """The methods that are held against each other: all but the yardsticks."""
        return [method for method in self.methods if method not in YARDSTICKS]

    @property
    def yardsticks(self) -> list[str]:
        return [method for method in self.methods if method in YARDSTICKS]

    @property
    def right_metrics(self) -> list[str]:
        return [metric for metric in self.metrics if METRICS[metric].is_right]

    def row(self, method: str, metric: str, axis: str | None, pole: str | None, variant: Any) -> ComparisonRow | None:
        return self._rows.get((method, metric, axis, pole, variant))

    def average(self, method: str, metric: str, variant: Any) -> ComparisonRow | None:
        """The row over all axes."""
        return self.row(method, metric, None, None, variant)

    def averages(self, methods: Iterable[str], metric: str, variant: Any) -> list[ComparisonRow]:
        return [row for method in methods if (row := self.average(method, metric, variant))]

    def of_variant(self, variant: Any) -> list[ComparisonRow]:
        return [row for row in self.rows if value_of(row["variant"]) == variant]

    def runs_of(self, method: str, variant: Any) -> list[RunLine]:
        return [run for run in self.runs if run["method"] == method and value_of(run["variant"]) == variant]

    def usual_seeds(self) -> int:
        """The number of seeds that a whole method has: the most that any row has, or that any method was to have."""
        planned = [len(self.runs_of(m, v)) for m in self.opponents for v in self.variants]
        return max([row["n_seeds"] for row in self.rows] + planned, default=0)

    def seeds_note(self, method: str, variant: Any) -> str:
        """Empty for a method with all the seeds that others have; n=2/3 where one failed; n=1 where fewer were to run.

        A yardstick has no seeds.
        """
        finished = max((r["n_seeds"] for r in self.of_variant(variant) if r["method"] == method), default=0)
        planned = len(self.runs_of(method, variant))
        if planned > finished:
            return f"n={finished}/{planned}"
        return "" if method in YARDSTICKS or finished == self.usual_seeds() else f"n={finished}"


def shown(metric: str, value: float) -> str:
    """A value of a metric for reading: shares in percent."""
    return f"{100 * value:.1f}" if METRICS[metric].is_share else f"{value:.3g}"


def spread(row: ComparisonRow) -> str:
    """The standard deviation over seeds; empty for one seed, which has none."""
    return shown(row["metric"], row["sd"]) if row["sd"] is not None and row["n_seeds"] > 1 else ""


def interval_of(row: ComparisonRow) -> tuple[float, float]:
    """The 95 % interval of a metric of choices; rows of whole runs have none, and must not be asked."""
    low, high = row["low"], row["high"]
    assert low is not None
    assert high is not None
    return low, high


def in_words(row: ComparisonRow) -> str:
    """A row's mean and standard deviation for a sentence: 71.2 +- 1.1 %."""
    return shown(row["metric"], row["mean"]) + (f" {PLUS_MINUS} {spread(row)}" if spread(row) else "") + " %"


def position_mark(row: ComparisonRow) -> str:
    """A sign where the interval reaches what position alone gives, and another where it lies wholly below."""
    baseline = row["position_baseline"]
    is_position = row["method"] in YARDSTICKS and YARDSTICKS[row["method"]].is_position
    if not METRICS[row["metric"]].is_right or baseline is None or is_position:
        return ""
    low, high = interval_of(row)
    if low > baseline:
        return ""
    return REACHES if high >= baseline else BELOW


def headline(view: Comparison) -> list[str]:
    """What a reader has to know before any number: who leads, by how much it is shown, and what is missing."""
    metrics = list(reversed(view.right_metrics))
    said = []
    for variant in view.variants:
        for metric in metrics if len(view.variants) == 1 else metrics[:1]:
            lines = [*standing(view, metric, variant), *differences(view, metric, variant)]
            prefix = "" if variant is None else f"{view.varies} {variant}: "
            said.append(prefix + " ".join([*lines, *against_yardsticks(view, metric, variant)]))
    said.append(" ".join([*standing(view, AREA, None), *differences(view, AREA, None)]))
    return [line for line in said if line] + failures(view)


def standing(view: Comparison, metric: str, variant: Any) -> list[str]:
    """Whether the reference method has the highest mean over axes; said as plainly where it has not."""
    name, reference = METRICS[metric].label, view.reference
    rows = sorted(view.averages(view.opponents, metric, variant), key=lambda row: -row["mean"])
    own = view.average(reference, metric, variant)
    others = [row for row in rows if row["method"] != reference]
    if own is None:
        return [f"{reference} has no finished run with {name}, so nothing is compared with it."] if rows else []
    if not others:
        return []
    equal = [row["method"] for row in others if shown(metric, row["mean"]) == shown(metric, own["mean"])]
    if others[0]["mean"] > own["mean"] and others[0]["method"] not in equal:
        rank = 1 + sum(row["mean"] > own["mean"] for row in others)
        return [
            f"{reference} does not win on {name}: {others[0]['method']} has the highest mean over axes, "
            f"{in_words(others[0])}; {reference} has {in_words(own)}, place {rank} of {len(rows)}."
        ]
    if equal:
        return [f"{reference} shares the highest {name} of {len(rows)} methods, {in_words(own)}, with {listed(equal)}."]
    return [
        f"{reference} has the highest {name} of {len(rows)} methods, {in_words(own)} as the mean over axes; next is "
        f"{others[0]['method']} with {in_words(others[0])}."
    ]


def differences(view: Comparison, metric: str, variant: Any) -> list[str]:
    """Against which methods the difference in the mean over axes is significant, in either direction."""
    tests = [
        test
        for test in view.report["tests"]
        if (test["a"], test["metric"], test["axis"], test["pole"]) == (view.reference, metric, None, None)
        and value_of(test["variant"]) == variant
    ]
    deciding = [test for test in tests if test["test"] in TESTS]
    if not deciding:
        return []
    sure = [test for test in deciding if is_significant(test)]
    above = [test["b"] for test in sure if test["difference"] > 0]
    below = [test["b"] for test in sure if test["difference"] < 0]
    open_ = [test["b"] for test in deciding if test not in sure]
    parts = [f"above {listed(above)}"] * bool(above) + [f"below {listed(below)}"] * bool(below)
    parts += [f"not shown to differ from {listed(open_)}"] * bool(open_)
    said = f"After Holm's correction ({kinds(deciding)}), {view.reference} is {'; '.join(parts)}."
    return [said, *_sign_flips(tests, sure)]


def _sign_flips(tests: Sequence[CorrectedTest], sure: Sequence[CorrectedTest]) -> list[str]:
    """Whether the test without assumptions about the spread confirms what the deciding one found."""
    flips = {test["b"]: test for test in tests if test["test"] == "permutation"}
    asked = [test["b"] for test in sure if test["b"] in flips]
    if not asked:
        return []
    seeds = max(flips[b]["n"] for b in asked)
    least = 2 / 2**seeds
    if least >= LEVEL:
        return [f"Sign flips over {seeds} seeds cannot give less than p = {least:.2g}, so they confirm none of it."]
    confirmed = [b for b in asked if is_significant(flips[b])]
    return [f"Sign flips over seeds confirm {listed(confirmed) if len(confirmed) < len(asked) else 'all of it'}."]


def is_significant(test: CorrectedTest) -> bool:
    return test["p_holm"] < LEVEL


def kinds(tests: Sequence[CorrectedTest]) -> str:
    """Name the tests with their n: `paired t over 2 to 3 seeds`."""
    sizes: dict[str, list[int]] = {}
    for test in tests:
        sizes.setdefault(test["test"], []).append(test["n"])
    return ", ".join(TESTS[kind].format(_range(found)) for kind, found in sizes.items())


def against_yardsticks(view: Comparison, metric: str, variant: Any) -> list[str]:
    """Which methods' intervals lie above each yardstick that shows something where it is not beaten."""
    rows = view.averages(view.opponents, metric, variant)
    found = {name: view.average(name, metric, variant) for name in YARDSTICKS if YARDSTICKS[name].if_unbeaten}
    return [_against(YARDSTICKS[name], probe, rows) for name, probe in found.items() if probe and rows]


def _against(yardstick: Yardstick, probe: ComparisonRow, rows: Sequence[ComparisonRow]) -> str:
    metric = probe["metric"]
    above = [row["method"] for row in rows if interval_of(row)[0] > probe["mean"]]
    below = [row["method"] for row in rows if interval_of(row)[0] <= probe["mean"]]
    value = f"the {yardstick.label} ({shown(metric, probe['mean'])} %) on {METRICS[metric].label}"
    if not above:
        return f"No method's interval is above {value}: {yardstick.if_unbeaten}."
    if not below:
        return f"Every method's interval is above {value}."
    return f"Above {value}, with their intervals: {listed(above)}; not shown to be: {listed(below)}."


def against_position(view: Comparison, metric: str, variant: Any) -> list[str]:
    """Which methods are not clearly above what position alone reaches, on the mean over axes."""
    marks = {row["method"]: position_mark(row) for row in view.averages(view.methods, metric, variant)}
    found = []
    for mark, verb in ((REACHES, "reaches"), (BELOW, "lies below")):
        if methods := [method for method, own in marks.items() if own == mark]:
            place = f"the position baseline ({shown(metric, _baseline(view, metric, variant))} %)"
            found.append(f"The interval of {METRICS[metric].label} {verb} {place} for {listed(methods)}.")
    return found


def _baseline(view: Comparison, metric: str, variant: Any) -> float:
    """What position alone reaches on the mean over axes: the same for every method."""
    averages = [row for row in view.of_variant(variant) if row["metric"] == metric and row["axis"] is None]
    return next(found for row in averages if (found := row["position_baseline"]) is not None)


def failures(view: Comparison) -> list[str]:
    """Every run that has not finished, by name; a mean over fewer seeds must not pass for a whole one."""
    failed = [run for run in view.runs if run["status"] != "finished"]
    if not failed:
        return []
    said = [f"{len(failed)} of {len(view.runs)} runs failed: {listed([run_name(view, run) for run in failed])}."]
    absent = [method for method in view.methods if all(row["method"] != method for row in view.rows)]
    return said + [f"No run of {listed(absent)} has finished: there is no number for it."] * bool(absent)


def run_name(view: Comparison, run: RunLine) -> str:
    seed = "" if run["seed"] is None else f" seed {run['seed']}"
    variant = value_of(run["variant"])
    return f"{run['method']}{seed}" + ("" if variant is None else f" ({view.varies} {variant})")


def basis(view: Comparison, metrics: Sequence[str], variants: Sequence[Any]) -> list[str]:
    """What the numbers of a table rest on: items, seeds, intervals, and where the data and the words come from."""
    rows = [row for row in view.rows if row["metric"] in metrics and value_of(row["variant"]) in variants]
    items = {m: _numbers_of_items(rows, m) for m in metrics}
    counted = [f"{_range(found)} for {METRICS[m].label}" for m, found in items.items() if found]
    seeds = view.usual_seeds()
    said = [f"Test items: {', '.join(counted)}."] if counted else []
    if seeds > 1:
        said.append(f"Mean {PLUS_MINUS} standard deviation over {seeds} seeds.")
    else:
        said.append("One seed, so no standard deviation.")
    notes = [view.seeds_note(method, variant) for method in view.methods for variant in variants]
    if any(notes):
        example = next((note.removeprefix("n=").replace("/", " of ") for note in notes if "/" in note), "")
        said.append(f"n: seeds, where there are not {seeds}" + (f" ({example} finished)." if example else "."))
    return said + _marks(rows) + [_provenance(view, variants)]


def _numbers_of_items(rows: Sequence[ComparisonRow], metric: str) -> list[int]:
    averages = [row for row in rows if row["metric"] == metric and row["axis"] is None]
    return [number for row in averages if (number := row["n_items"]) is not None]


def _marks(rows: Sequence[ComparisonRow]) -> list[str]:
    used = {position_mark(row) for row in rows}
    meanings = {REACHES: "reaches the position baseline", BELOW: "lies wholly below the position baseline"}
    explained = " or ".join(f"{meaning} ({mark})" for mark, meaning in meanings.items() if mark in used)
    interval = "Intervals: 95 %, bootstrap clustered by scenario, over the mean of the seeds"
    return [f"{interval}; a mark where one {explained}." if explained else f"{interval}."]


def _provenance(view: Comparison, variants: Sequence[Any]) -> str:
    runs = [run for run in view.runs if value_of(run["variant"]) in variants]
    parts: dict[str, Literal["data_digest", "test_digest", "template_digest", "commit"]] = {
        "training data": "data_digest",
        "test data": "test_digest",
        "prompt template": "template_digest",
        "commit": "commit",
    }
    found = {what: _distinct(str(run[key])[:12] for run in runs if run[key]) for what, key in parts.items()}
    return "Digests: " + "; ".join(f"{what} {', '.join(d) or 'unknown'}" for what, d in found.items()) + "."


def listed(names: Sequence[str]) -> str:
    """Join names for a sentence: `a`, `a and b`, `a, b and c`; `none` where there are none."""
    if len(names) < 2:
        return names[0] if names else "none"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
