"""A metric that a user's file registers: in a suite, in the rows, the tables and the page, with no other edit."""

from typing import Any

import pytest

from pft_core.errors import UserError
from pft_core.evaluation.metrics.metric import Metric
from pft_core.evaluation.metrics.outcome import Outcome
from pft_core.evaluation.metrics.registry import METRICS
from pipelines.compare.report.claims import Comparison
from pipelines.compare.report.comparison_report import render, write_comparison
from pipelines.compare.report.latex import latex
from pipelines.compare.report.markdown import markdown
from pipelines.compare.report.tables import by_metric, by_pole
from pipelines.compare.report_builder import run_values
from pipelines.compare.statistics.comparison_rows import MethodOutcomes, rows_of, run_rows
from pipelines.compare.suite import Suite, load_suite
from tests.builders import SPACE
from tests.pipelines.compare.test_compare_tables import comparison

METHODS = ("pft", "dpo")


def takes_first(outcome: Outcome, side: int) -> tuple[float, float]:
    return float(outcome.chosen[side] == frozenset({0})), 1.0


@pytest.fixture(autouse=True)
def own_metrics(monkeypatch) -> None:
    monkeypatch.setattr(METRICS, "_entries", {name: METRICS[name] for name in METRICS})
    METRICS.add("first", Metric("Takes first", "the first option is chosen", "pole", takes_first, best="lowest"))
    METRICS.add("sure", Metric("Sure", "right, and of poles", "pole", takes_first, best="highest", is_right=True))
    METRICS.add("wait", Metric("Wait", "seconds", "run", lambda run: run.get("seconds"), is_share=False))


def method_outcomes(method: str, first_choices: int) -> MethodOutcomes:
    """Make ten items, a given number of which choose the first option under both poles."""
    outcomes = [
        Outcome(f"i{n}", f"s{n}", "Risk", "one", (0, 1), (frozenset({int(n >= first_choices)}),) * 2) for n in range(10)
    ]
    return MethodOutcomes(method, None, {seed: (f"{method}-{seed}", outcomes) for seed in (0, 1)}, 2)


def report(metrics: list[str]) -> dict[str, Any]:
    methods = [method_outcomes("pft", 2), method_outcomes("dpo", 6)]
    rows = [row for f in methods for row in rows_of(f, SPACE, metrics)]
    rows += run_rows("wait", [(f, [3.0, 5.0]) for f in methods if "wait" in metrics])
    return comparison() | {"rows": rows, "tests": []}


def cells(table: Any, metric: str) -> dict[str, str]:
    (place,) = [i for i, column in enumerate(table.columns) if column.metric == metric]
    return {line.method: line.cells[place].value for line in table.blocks[0].methods if line.cells[place].row}


def test_a_suite_may_name_it_and_is_told_the_nearest_name(tmp_path) -> None:
    def suite(metric: str) -> Suite:
        path = tmp_path / "own.yaml"
        path.write_text(f"name: own\ntitle: own\nmethods: [pft]\nmetrics: [one, {metric}]\nsizes: {{tiny: {{}}}}\n")
        return load_suite(str(path))

    assert suite("first").metrics == ["one", "first"]
    with pytest.raises(UserError, match=r"metric 'frist' does not exist\. Did you mean 'first'"):
        suite("frist")
    with pytest.raises(
        UserError, match="metric 'capability' does not exist"
    ):  # it is added if the size names questions
        suite("capability")


def test_its_rows_are_those_of_any_metric() -> None:
    rows = rows_of(method_outcomes("pft", 2), SPACE, ["one", "first"])
    own = {(row["axis"], row["pole"]): row for row in rows if row["metric"] == "first"}
    assert set(own) == {(None, None), ("Risk", None), ("Risk", "Bold"), ("Risk", "Careful")}
    assert own[None, None]["mean"] == 0.2
    assert own["Risk", "Bold"]["position_baseline"] == 1.0
    assert not [row for row in rows_of(method_outcomes("pft", 2), SPACE, ["one"]) if row["metric"] == "first"]


def test_it_is_a_column_and_the_lowest_is_best_where_it_says_so() -> None:
    view = Comparison(report(["one", "first"]))
    table = by_metric(view, None)
    assert cells(table, "first") == {"pft": "20.0", "dpo": "60.0"}
    (line,) = [line for line in table.blocks[0].methods if line.method == "pft"]
    assert line.cells[0].best
    assert "for Takes first, the lowest" in " ".join(table.caption)


def test_a_share_of_right_answers_has_a_block_of_its_own() -> None:
    blocks = [block.title for block in by_pole(Comparison(report(["one", "sure"])), None).blocks]
    assert blocks == ["Multi-choice One (%)", "Sure (%)"]


def test_it_reaches_every_file_and_says_what_it_means() -> None:
    own_report = report(["one", "first", "sure"])
    assert "Takes first" in markdown(own_report)
    assert "Takes first" in latex(own_report)
    page = render(own_report)
    assert "<dt>Takes first</dt><dd>the first option is chosen</dd>" in page
    assert "Sure of every method on Risk" in page  # its bars


def test_a_metric_of_runs_reads_their_results() -> None:
    class PftMethod:
        name = "pft"

    pairs: Any = [(PftMethod, {"seconds": 3.0}), (PftMethod, {"error": "x"}), (PftMethod, {})]
    assert run_values("wait", method_outcomes("pft", 2), pairs) == [3.0]
    assert cells(by_metric(Comparison(report(["one", "wait"])), None), "wait") == {"pft": "4", "dpo": "4"}


def test_a_measure_that_fails_or_gives_no_finite_number_is_said_with_its_method() -> None:
    METRICS.add("raises", Metric("Raises", "raises", "pair", lambda outcome: 1 / 0))
    METRICS.add("nan", Metric("None", "no number", "run", lambda run: float("nan"), is_share=False))
    with pytest.raises(UserError, match=r"^method dpo: metric 'raises', item 'i0': .*ZeroDivisionError"):
        rows_of(method_outcomes("dpo", 2), SPACE, ["one", "raises"])

    class PftMethod:
        name = "pft"

    pairs: Any = [(PftMethod, {"run_id": "r7"})]
    with pytest.raises(UserError, match=r"^method pft: metric 'nan', run r7: the measure returned nan: .* or None"):
        run_values("nan", method_outcomes("pft", 2), pairs)


def test_a_report_with_a_number_that_is_not_finite_is_not_written(tmp_path) -> None:
    own_report = report(["one"])
    own_report["rows"][0]["mean"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_comparison(own_report, tmp_path)
    assert list(tmp_path.iterdir()) == []
