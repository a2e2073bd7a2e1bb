"""The page of a comparison: whole, self-contained, escaped, and every number with its runs."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from pft_core.files import read_json
from pipelines.compare.plan import VariantPlan
from pipelines.compare.report.comparison_report import p_value, render, write_comparison
from pipelines.compare.report_builder import cautions
from pipelines.compare.statistics.area import AREA
from pipelines.compare.suite_data import SuiteData
from tests.builders import record, write_dataset
from tests.pipelines.compare.test_compare_tables import HOSTILE, comparison, row, variants_report, verdict, without_seed


class Page(HTMLParser):
    """Collects tags, links and ids, and checks that tags close in order."""

    VOID = ("meta", "link", "br", "hr", "img", "input")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [value or "" for key, value in self.attributes if key == name]


@pytest.mark.parametrize("report", [comparison(), variants_report(), without_seed(comparison(), "sft:mixed", 2)])
def test_the_page_is_whole_and_loads_nothing(report) -> None:
    page = Page(render(report))
    assert not page.open
    assert not {"script", "iframe", "link", "img"} & set(page.tags)
    assert all(value.startswith("#") for value in page.values("href"))
    assert {value[1:] for value in page.values("href")} <= set(page.values("id"))
    assert page.tags.count("svg") > 8


def test_every_number_links_to_runs_that_say_data_wording_and_commit() -> None:
    report = comparison()
    text = render(report)
    places = {run["run_id"]: i for i, run in enumerate(report["runs"])}
    for run in report["runs"]:
        line = re.search(rf'<tr id="run-{places[run["run_id"]]}">.*?</tr>', text, re.DOTALL)
        assert line is not None
        assert all(run[key] in line[0] for key in ("run_id", "data_digest", "test_digest", "template_digest", "commit"))
    found = next(r for r in report["rows"] if (r["method"], r["metric"], r["pole"]) == ("pft", "one", "Daring"))
    cell = next(line for line in text.split("<tr>") if f'<data value="{found["mean"]}">' in line)
    assert [int(place) for place in re.findall(r'href="#run-(\d+)"', cell)] == [places[run] for run in found["run_ids"]]


def test_texts_are_escaped_and_credentials_masked(tmp_path) -> None:
    report = comparison(title=f"<script>{HOSTILE}", captions=["<b>bold</b>"])
    report["runs"][0] |= {"status": "failed", "error": "no answer from postgresql://ann:secret@db/x <i>"}
    paths = write_comparison(report, tmp_path)
    for path in paths.values():
        assert "secret" not in path.read_text()
    assert not {"script", "i"} & set(Page(paths["report_html"].read_text()).tags)
    assert "&lt;b&gt;bold" in paths["report_html"].read_text()
    assert read_json(paths["report_json"], what="a report")["rows"] == json.loads(json.dumps(report["rows"]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json", "tables.md", "tables.tex"]


def test_the_area_under_the_curve_has_its_own_table_and_verdict() -> None:
    report = variants_report()
    report["rows"] += [
        row(m, AREA, mean, None, None, position_baseline=None) for m, mean in (("pft", 0.7), ("sft:mixed", 0.6))
    ]
    report["tests"] += [verdict("sft:mixed", 0.1, 0.004, metric=AREA)]
    text = render(report)
    assert "Area under both right, by train_size" in text
    assert "pft has the highest Area under both right of 2 methods, 70.0" in text
    assert "After Holm&#39;s correction (paired t-test over 3 seeds), pft is significantly above sft:mixed." in text


@pytest.mark.parametrize(
    ("p", "text"), [(0.03449, "0.034"), (0.00042, "0.0004"), (0.00001, "< 0.0001"), (1.0, "1.000")]
)
def test_p_values_are_written_for_reading(p, text) -> None:
    assert p_value(p) == text


def test_methods_that_are_tested_on_trained_scenarios_are_said_first(tmp_path) -> None:
    train, fresh = (write_dataset(tmp_path / str(at), [record(n) for n in range(at, at + 8)]) for at in (0, 8))
    test = write_dataset(tmp_path / "test", [record(n) for n in range(6, 10)])
    trained, untrained = SimpleNamespace(layers=("layer",)), SimpleNamespace(layers=())
    suite = SimpleNamespace(varies="axes")
    plans = [
        VariantPlan(SimpleNamespace(value=1), SuiteData("a", train, train, test), (untrained, trained)),
        VariantPlan(SimpleNamespace(value=2), SuiteData("a", train, train, test), (untrained,)),
        VariantPlan(None, SuiteData("b", train, train, fresh), (trained,)),
    ]
    (caution,) = cautions(suite, plans)
    assert caution.startswith("axes 1: 2 of the 4 test scenarios are also in the training data: ")
    assert Page(render({**comparison(), "cautions": [caution]})).open == []
    assert f"<li>{caution}</li>" in render({**comparison(), "cautions": [caution]})
