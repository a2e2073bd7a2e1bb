"""A yardstick that a user's file registers: named in a suite, run without a cell, and below the rule of the tables."""

from pathlib import Path

import pytest

from pft_core.data.records import PairedExample
from pft_core.errors import UserError
from pft_core.evaluation.metrics.outcome import Outcome
from pft_core.evaluation.yardsticks.position import outcome_of
from pft_core.evaluation.yardsticks.registry import YARDSTICKS, Yardstick
from pft_core.toyworld.shipped import SHIPPED_BASE
from pipelines.compare.plan import SuiteLayers, VariantPlan, cells_of
from pipelines.compare.report.claims import Comparison, headline_sentences
from pipelines.compare.report.comparison_report import role
from pipelines.compare.report.tables import by_pole
from pipelines.compare.report_builder import method_outcomes, run_lines
from pipelines.compare.suite import load_suite
from pipelines.compare.suite_data import SuiteData
from tests.builders import record, write_dataset
from tests.pipelines.compare.test_compare_tables import MEANS, comparison


def as_often_trained(train: list[PairedExample], test: list[PairedExample], *, form: str) -> list[Outcome]:
    """Always choose the option whose index is the number of training records."""
    return [outcome_of(item, form, (frozenset({len(train)}), frozenset({0}))) for item in test]


@pytest.fixture(autouse=True)
def own_yardstick(monkeypatch) -> None:
    monkeypatch.setattr(YARDSTICKS, "_entries", {name: YARDSTICKS[name] for name in YARDSTICKS})
    own = Yardstick("by number", "the option of the number", as_often_trained, True, if_unbeaten="nothing is learned")
    YARDSTICKS.add("by_number", own)


@pytest.fixture
def plan(tmp_path) -> VariantPlan:
    train = write_dataset(tmp_path / "train", [record(0)])
    test = write_dataset(tmp_path / "test", [record(n) for n in range(1, 6)])
    return VariantPlan(None, SuiteData("own", train, train, test), ())


def suite(folder: Path, methods: str):
    path = folder / "own.yaml"
    path.write_text(f"name: own\ntitle: own\nmethods: [{methods}]\nsizes: {{tiny: {{test_per_axis: 3}}}}\n")
    return load_suite(str(path))


def test_a_suite_may_name_it_and_is_told_the_nearest_name(tmp_path) -> None:
    assert suite(tmp_path, "by_number, pft").methods == ["by_number", "pft"]
    with pytest.raises(
        UserError, match="method 'by_numbr' does not exist. Did you mean 'by_number'".replace(".", r"\.")
    ):
        suite(tmp_path, "by_numbr, pft")


def test_it_answers_the_test_records_after_the_training_records_and_is_no_cell(tmp_path, plan) -> None:
    chosen = suite(tmp_path, "position, by_number, pft").model_copy(update={"methods": ["position", "by_number"]})
    size = chosen.sizes["tiny"]
    position, own = method_outcomes(chosen, size, plan, [])
    assert (own.method, own.is_yardstick) == ("by_number", True)
    assert [outcome.chosen[0] for outcome in own.runs[0]] == [frozenset({1})] * 3
    assert [outcome.chosen[0] for outcome in position.runs[0]] == [frozenset({0})] * 3
    assert [line["method"] for line in run_lines(chosen, plan, [])] == ["position", "by_number"]
    assert not list(cells_of(chosen, size, None, plan.data, str(SHIPPED_BASE), tmp_path, SuiteLayers()))


def test_it_stands_below_the_rule_under_its_label_and_says_where_nothing_beats_it() -> None:
    view = Comparison(comparison({**MEANS, "by_number": 0.99}))
    lines = by_pole(view, None).blocks[0].yardsticks
    assert "by number" in [line.label.split(" (")[0] for line in lines]
    assert role(view, "by_number") == "yardstick"
    assert "interval is above the by number (99.0%): nothing is learned." in " ".join(headline_sentences(view))
