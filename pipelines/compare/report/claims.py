"""Sentences about a comparison, each computed from its rows, tests and runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pft_core.evaluation import METRICS, YARDSTICKS, Yardstick
from pipelines.compare.report.comparison_schema import ComparisonReport, RunLine
from pipelines.compare.statistics import AREA, ComparisonRow, CorrectedTest

LEVEL = 0.05  # significance level, after Holm's correction
PLUS_MINUS, REACHES, BELOW, MISSING = "\u00b1", "\u2020", "\u2021", "\u2013"
TESTS = {"paired_t": "paired t-test over {} seeds", "mcnemar": "McNemar's test on {} items"}  # tests that decide


def method_label(method: str) -> str:
    """Return the name of a method in a table."""
    return YARDSTICKS[method].label if method in YARDSTICKS else method


def value_of(variant: Any) -> Any:
    """Return the value of a variant: rows hold it with its name, runs and curves may hold it alone."""
    return variant["value"] if isinstance(variant, Mapping) else variant


class Comparison:
    """The rows of a report, looked up by method, place and variant.

    methods: in the order of the rows, then those that only failed. variants: their values, [None] if nothing varies.
    """

    def __init__(self, report: ComparisonReport) -> None:
        self.report = report
        self.rows = report["rows"]
        self.runs = report["runs"]
        self.methods = _distinct(row["method"] for row in [*self.rows, *self.runs])
        of_one = [row for row in self.rows if row["metric"] != AREA]
        self.variants = _distinct(value_of(row["variant"]) for row in [*of_one, *self.runs]) or [None]
        self.varies = next((variant["name"] for row in self.rows if (variant := row["variant"])), "variant")
        self.metrics = [m for m in METRICS if any(row["metric"] == m for row in self.rows)]
        self.reference: str = report["config"].get("reference", "pft")
        self._rows = {
            (row["method"], row["metric"], row["axis"], row["pole"], value_of(row["variant"])): row for row in self.rows
        }

    @property
    def opponents(self) -> list[str]:
        """Return the methods that are compared with each other: all except the yardsticks."""
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
        """Return the row over all axes."""
        return self.row(method, metric, None, None, variant)

    def averages(self, methods: Iterable[str], metric: str, variant: Any) -> list[ComparisonRow]:
        return [row for method in methods if (row := self.average(method, metric, variant))]

    def of_variant(self, variant: Any) -> list[ComparisonRow]:
        return [row for row in self.rows if value_of(row["variant"]) == variant]

    def runs_of(self, method: str, variant: Any) -> list[RunLine]:
        return [run for run in self.runs if run["method"] == method and value_of(run["variant"]) == variant]

    def usual_seeds(self) -> int:
        """Return the number of seeds of a complete method: the most that any row has or any method planned."""
        planned = [len(self.runs_of(m, v)) for m in self.opponents for v in self.variants]
        return max([row["n_seeds"] for row in self.rows] + planned, default=0)

    def seeds_note(self, method: str, variant: Any) -> str:
        """Return "" for a method with as many seeds as the others, n=2/3 if one failed, n=1 if fewer were planned.

        A yardstick has no seeds.
        """
        finished = max((r["n_seeds"] for r in self.of_variant(variant) if r["method"] == method), default=0)
        planned = len(self.runs_of(method, variant))
        if planned > finished:
            return f"n={finished}/{planned}"
        return "" if method in YARDSTICKS or finished == self.usual_seeds() else f"n={finished}"


def format_value(metric: str, value: float) -> str:
    """Format a value of a metric, shares in percent."""
    return f"{100 * value:.1f}" if METRICS[metric].is_share else f"{value:.3g}"


def spread(row: ComparisonRow) -> str:
    """Format the standard deviation over seeds; empty for a single seed."""
    return format_value(row["metric"], row["sd"]) if row["sd"] is not None and row["n_seeds"] > 1 else ""


def interval_of(row: ComparisonRow) -> tuple[float, float]:
    """Return the 95% interval of a row; rows about whole runs have none and must not be passed."""
    low, high = row["low"], row["high"]
    assert low is not None
    assert high is not None
    return low, high


def in_words(row: ComparisonRow) -> str:
    """Format a row's mean and standard deviation for a sentence, such as 71.2 +- 1.1%."""
    return format_value(row["metric"], row["mean"]) + (f" {PLUS_MINUS} {spread(row)}" if spread(row) else "") + "%"


def position_mark(row: ComparisonRow) -> str:
    """Return the mark of an interval that reaches the position baseline or lies wholly below it, else ""."""
    baseline = row["position_baseline"]
    is_position = row["method"] in YARDSTICKS and YARDSTICKS[row["method"]].is_position
    if not METRICS[row["metric"]].is_right or baseline is None or is_position:
        return ""
    low, high = interval_of(row)
    if low > baseline:
        return ""
    return REACHES if high >= baseline else BELOW


def headline_sentences(view: Comparison) -> list[str]:
    """Return the opening sentences: which method leads, whether that is significant, and what is missing."""
    metrics = list(reversed(view.right_metrics))
    sentences = []
    for variant in view.variants:
        for metric in metrics if len(view.variants) == 1 else metrics[:1]:
            lines = [*ranking(view, metric, variant), *differences(view, metric, variant)]
            prefix = "" if variant is None else f"{view.varies} {variant}: "
            sentences.append(prefix + " ".join([*lines, *against_yardsticks(view, metric, variant)]))
    sentences.append(" ".join([*ranking(view, AREA, None), *differences(view, AREA, None)]))
    return [sentence for sentence in sentences if sentence] + failures(view)


def ranking(view: Comparison, metric: str, variant: Any) -> list[str]:
    """Say whether the reference method has the highest mean over axes, as plainly if it has not."""
    name, reference = METRICS[metric].label, view.reference
    rows = sorted(view.averages(view.opponents, metric, variant), key=lambda row: -row["mean"])
    own = view.average(reference, metric, variant)
    others = [row for row in rows if row["method"] != reference]
    if own is None:
        return [f"{reference} has no finished run with {name}, so nothing is compared with it."] if rows else []
    if not others:
        return []
    equal = [row["method"] for row in others if format_value(metric, row["mean"]) == format_value(metric, own["mean"])]
    if others[0]["mean"] > own["mean"] and others[0]["method"] not in equal:
        rank = 1 + sum(row["mean"] > own["mean"] for row in others)
        return [
            f"{reference} does not lead on {name}: {others[0]['method']} has the highest mean over axes, "
            f"{in_words(others[0])}; {reference} has {in_words(own)}, rank {rank} of {len(rows)}."
        ]
    if equal:
        return [
            f"{reference} ties for the highest {name} of {len(rows)} methods, {in_words(own)}, "
            f"with {join_names(equal)}."
        ]
    return [
        f"{reference} has the highest {name} of {len(rows)} methods, {in_words(own)} (mean over axes); next is "
        f"{others[0]['method']} with {in_words(others[0])}."
    ]


def differences(view: Comparison, metric: str, variant: Any) -> list[str]:
    """Say for which methods the difference in the mean over axes is significant, and in which direction."""
    tests = [
        test
        for test in view.report["tests"]
        if (test["a"], test["metric"], test["axis"], test["pole"]) == (view.reference, metric, None, None)
        and value_of(test["variant"]) == variant
    ]
    deciding = [test for test in tests if test["test"] in TESTS]
    if not deciding:
        return []
    significant = [test for test in deciding if is_significant(test)]
    above = [test["b"] for test in significant if test["difference"] > 0]
    below = [test["b"] for test in significant if test["difference"] < 0]
    undecided = [test["b"] for test in deciding if test not in significant]
    parts = [f"significantly above {join_names(above)}"] * bool(above)
    parts += [f"significantly below {join_names(below)}"] * bool(below)
    parts += [f"not significantly different from {join_names(undecided)}"] * bool(undecided)
    sentence = f"After Holm's correction ({describe_tests(deciding)}), {view.reference} is {'; '.join(parts)}."
    return [sentence, *_sign_flips(tests, significant)]


def _sign_flips(tests: Sequence[CorrectedTest], significant: Sequence[CorrectedTest]) -> list[str]:
    """Say whether sign flips, which assume nothing about the spread, confirm the significant differences."""
    flips = {test["b"]: test for test in tests if test["test"] == "permutation"}
    opponents = [test["b"] for test in significant if test["b"] in flips]
    if not opponents:
        return []
    seeds = max(flips[b]["n"] for b in opponents)
    least = 2 / 2**seeds
    if least >= LEVEL:
        return [f"A sign-flip test over {seeds} seeds cannot reach p below {least:.2g}, so it cannot confirm this."]
    confirmed = [b for b in opponents if is_significant(flips[b])]
    if len(confirmed) == len(opponents):
        return ["A sign-flip test over seeds confirms all significant differences."]
    return [f"A sign-flip test over seeds confirms the difference from {join_names(confirmed)}."]


def is_significant(test: CorrectedTest) -> bool:
    return test["p_holm"] < LEVEL


def describe_tests(tests: Sequence[CorrectedTest]) -> str:
    """Name the tests with their n, such as `paired t-test over 2 to 3 seeds`."""
    sizes: dict[str, list[int]] = {}
    for test in tests:
        sizes.setdefault(test["test"], []).append(test["n"])
    return ", ".join(TESTS[kind].format(_range(numbers)) for kind, numbers in sizes.items())


def against_yardsticks(view: Comparison, metric: str, variant: Any) -> list[str]:
    """Say which methods' intervals lie above each yardstick that means something if no method beats it."""
    rows = view.averages(view.opponents, metric, variant)
    averages = {name: view.average(name, metric, variant) for name in YARDSTICKS if YARDSTICKS[name].if_unbeaten}
    return [_against(YARDSTICKS[name], probe, rows) for name, probe in averages.items() if probe and rows]


def _against(yardstick: Yardstick, probe: ComparisonRow, rows: Sequence[ComparisonRow]) -> str:
    metric = probe["metric"]
    above = [row["method"] for row in rows if interval_of(row)[0] > probe["mean"]]
    below = [row["method"] for row in rows if interval_of(row)[0] <= probe["mean"]]
    value = f"the {yardstick.label} ({format_value(metric, probe['mean'])}%)"
    name = METRICS[metric].label
    if not above:
        return f"On {name}, no method's interval is above {value}: {yardstick.if_unbeaten}."
    if not below:
        return f"On {name}, every method's interval is above {value}."
    return f"On {name}, intervals above {value}: {join_names(above)}; not above: {join_names(below)}."


def against_position(view: Comparison, metric: str, variant: Any) -> list[str]:
    """Say which methods are not clearly above the position baseline, on the mean over axes."""
    marks = {row["method"]: position_mark(row) for row in view.averages(view.methods, metric, variant)}
    sentences = []
    for mark, verb in ((REACHES, "reaches"), (BELOW, "lies below")):
        if methods := [method for method, own in marks.items() if own == mark]:
            place = f"the position baseline ({format_value(metric, _baseline(view, metric, variant))}%)"
            sentences.append(f"The interval of {METRICS[metric].label} {verb} {place} for {join_names(methods)}.")
    return sentences


def _baseline(view: Comparison, metric: str, variant: Any) -> float:
    """Return the position baseline of the mean over axes, which is the same for every method."""
    averages = [row for row in view.of_variant(variant) if row["metric"] == metric and row["axis"] is None]
    return next(baseline for row in averages if (baseline := row["position_baseline"]) is not None)


def failures(view: Comparison) -> list[str]:
    """Name every unfinished run, so that a mean over fewer seeds does not pass for a complete one."""
    failed = [run for run in view.runs if run["status"] != "finished"]
    if not failed:
        return []
    sentences = [
        f"{len(failed)} of {len(view.runs)} runs failed: {join_names([run_name(view, run) for run in failed])}."
    ]
    absent = [method for method in view.methods if all(row["method"] != method for row in view.rows)]
    return sentences + [f"No run of {join_names(absent)} has finished, so there are no numbers."] * bool(absent)


def run_name(view: Comparison, run: RunLine) -> str:
    seed = "" if run["seed"] is None else f" seed {run['seed']}"
    variant = value_of(run["variant"])
    return f"{run['method']}{seed}" + ("" if variant is None else f" ({view.varies} {variant})")


def basis(view: Comparison, metrics: Sequence[str], variants: Sequence[Any]) -> list[str]:
    """Say what the numbers of a table rest on: items, seeds, intervals, and digests of data and prompts."""
    rows = [row for row in view.rows if row["metric"] in metrics and value_of(row["variant"]) in variants]
    items = {m: _numbers_of_items(rows, m) for m in metrics}
    counts = [f"{_range(numbers)} for {METRICS[m].label}" for m, numbers in items.items() if numbers]
    seeds = view.usual_seeds()
    sentences = [f"Test items: {', '.join(counts)}."] if counts else []
    if seeds > 1:
        sentences.append(f"Mean {PLUS_MINUS} standard deviation over {seeds} seeds.")
    else:
        sentences.append("One seed, so no standard deviation.")
    notes = [view.seeds_note(method, variant) for method in view.methods for variant in variants]
    if any(notes):
        example = next((note.removeprefix("n=").replace("/", " of ") for note in notes if "/" in note), "")
        sentences.append(f"n: the number of seeds, if not {seeds}" + (f" ({example} finished)." if example else "."))
    return sentences + _marks(rows) + [_provenance(view, variants)]


def _numbers_of_items(rows: Sequence[ComparisonRow], metric: str) -> list[int]:
    averages = [row for row in rows if row["metric"] == metric and row["axis"] is None]
    return [number for row in averages if (number := row["n_items"]) is not None]


def _marks(rows: Sequence[ComparisonRow]) -> list[str]:
    used = {position_mark(row) for row in rows}
    meanings = {REACHES: "reaches the position baseline", BELOW: "lies wholly below the position baseline"}
    marks = "; ".join(f"{mark}: the interval {meaning}" for mark, meaning in meanings.items() if mark in used)
    interval = "Intervals: 95%, from a bootstrap clustered by scenario, over the mean of the seeds."
    return [interval, f"{marks}."] if marks else [interval]


def _provenance(view: Comparison, variants: Sequence[Any]) -> str:
    runs = [run for run in view.runs if value_of(run["variant"]) in variants]
    parts: dict[str, Literal["data_digest", "test_digest", "template_digest", "commit"]] = {
        "training data": "data_digest",
        "test data": "test_digest",
        "prompt template": "template_digest",
        "commit": "commit",
    }
    digests = {what: _distinct(str(run[key])[:12] for run in runs if run[key]) for what, key in parts.items()}
    return "Digests: " + "; ".join(f"{what} {', '.join(d) or 'unknown'}" for what, d in digests.items()) + "."


def join_names(names: Sequence[str]) -> str:
    """Join names for a sentence: `a`, `a and b`, `a, b and c`; `none` if there are none."""
    if len(names) < 2:
        return names[0] if names else "none"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
