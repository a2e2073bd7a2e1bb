"""The page is safe and whole, and its sentences follow the rows."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pft_core.evaluation.metrics.metric import Metric
from pft_core.evaluation.metrics.registry import METRICS
from pipelines.reporting.number_formats import number, seconds
from pipelines.reporting.policy_cards import policy_colors
from pipelines.reporting.run_report import render, write_report

VOID = {"meta", "link", "br", "hr", "img", "input"}
ATTACK = """<script>alert(1)</script><img src=x onerror="alert(2)">'"&{{ 7*7 }}"""


class Page(HTMLParser):
    """A parser that rejects badly nested tags and collects what the tests check."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all_text(self) -> str:
        return " ".join(" ".join(self.text).split())


def row(policy: str, pole: str | None, value: float, **changes: Any) -> dict[str, Any]:
    own = {
        "policy": policy,
        "axis": "Risk",
        "pole": pole,
        "trained_pole": None,
        "metric": "one",
        "value": value,
        "n": 300,
        "low": value - 0.02,
        "high": value + 0.02,
        "position_baseline": 0.5,
        "unparsed": 0.0,
    }
    return own | changes


def small_report(*rows: dict[str, Any], **parts: Any) -> dict[str, Any]:
    base = {"title": "A run", "timings": {"train": 62.0}, "config": {"seed": 3}, "digests": {"data": "d" * 16}}
    return {**base, "rows": list(rows), **parts}


@pytest.fixture
def report() -> dict[str, Any]:
    """Make a report of three policies, as in a quickstart, with values that rounding would change."""
    rows = []
    for policy, sides, values in (
        ("base", None, (0.5123456, 0.4876543)),
        ("sft:first", (True, False), (0.9712345, 0.0412345)),
        ("pft", (True, True), (0.9623456, 0.9534567)),
    ):
        for i, pole in enumerate(("Daring", "Careful")):
            rows.append(row(policy, pole, values[i], trained_pole=sides and sides[i]))
        rows.append(row(policy, None, 0.1234567, metric="both_right"))
        rows.append(row(policy, None, 0.2345678, metric="leak", position_baseline=None))
    steps = [
        {"step": s, "loss_first": 2 / s, "loss_second": 3 / s, "grad_norm": 1.0, "lr": 1e-3} for s in range(1, 500)
    ]
    return small_report(*rows, training={"pft": steps}, notes=["A tiny model."])


def test_the_numbers_of_the_page_are_those_of_the_json(report: dict[str, Any], tmp_path: Path) -> None:
    json_path, html_path = write_report(report, tmp_path / "made")
    saved = json.loads(json_path.read_text())
    assert saved == report
    shown = [float(attrs["value"] or "") for tag, attrs in Page(html_path.read_text()).tags if tag == "data"]
    assert shown == [saved_row[key] for saved_row in saved["rows"] for key in ("value", "low", "high")]


def test_the_page_is_small_and_asks_for_nothing_from_elsewhere(report: dict[str, Any]) -> None:
    text = render(report)
    assert len(text.encode()) < 300_000
    tags = Page(text).tags
    policy = next(a["content"] for t, a in tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "form", "img", "a"}
    assert not [a for _, attrs in tags for a in attrs if a in ("src", "href") or a.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text


def test_every_text_is_escaped() -> None:
    hostile = row(ATTACK, ATTACK, 0.4, axis=ATTACK, unparsed=0.5, trained_pole=True)
    text = render(
        small_report(
            hostile,
            title=ATTACK,
            notes=[ATTACK],
            timings={ATTACK: 1.0},
            config={ATTACK: [ATTACK]},
            digests={ATTACK: ATTACK},
            items={"in": 2, "out": 1, "rejected": 1, "rejected_by_reason": {ATTACK: 1}},
            training={ATTACK: [{"step": 1, "loss": 1.0}]},
        )
    )
    page = Page(text)
    assert "<script" not in text
    assert "<img" not in text
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert ATTACK in "".join(page.text)


def test_credentials_of_a_uri_reach_neither_file(report: dict[str, Any], tmp_path: Path) -> None:
    report["config"] = {"tracking": {"uri": "http://me:hunter2@host"}}
    for path in write_report(report, tmp_path):
        assert "hunter2" not in path.read_text()
        assert "***@host" in path.read_text()


def test_the_sentences_follow_the_rows(report: dict[str, Any]) -> None:
    text = Page(render(report)).all_text()
    assert "sft:first: One is 0.97 on the 1 pole it was trained on and 0.04 on the other 1 pole." in text
    assert "pft: One is 0.95 to 0.96 on the 2 poles it was trained on." in text
    assert "base: One is 0.49 to 0.51 on 2 poles." in text
    # base: 0.51 - 0.02 < 0.5, so its interval reaches down to the baseline
    assert "The whole interval is above the position baseline on 0 of 2 poles." in text
    assert "The whole interval is above the position baseline on 2 of 2 poles." in text


def test_an_interval_of_few_scenarios_is_not_called_above_the_baseline() -> None:
    certain = {"n": 40, "num_scenarios": 4, "low": 1.0, "high": 1.0}
    both_right = row("p", None, 1.0, metric="both_right", **certain)
    rows = [row("p", "Daring", 1.0, **certain), row("p", "Careful", 1.0, **certain), both_right]
    text = Page(render(small_report(*rows))).all_text()
    assert "right in 100% of 40 cases." in text
    assert "The whole interval" not in text
    assert "On 2 poles, fewer than 30 scenarios are too few to say whether p is above the position baseline." in text
    other = [row("p", pole, 0.9, axis="Pace", num_scenarios=30) for pole in ("Swift", "Patient")]
    assert "above the position baseline on 2 of 2 poles." in Page(render(small_report(*rows, *other))).all_text()


def test_a_policy_below_position_alone_is_a_warning() -> None:
    text = Page(render(small_report(row("p", "Daring", 0.3), row("p", "Careful", 0.7)))).all_text()
    assert "p is below the position baseline: Risk / Daring One 0.30 (position 0.50)." in text


def test_unparsed_answers_and_rejected_items_are_warnings() -> None:
    items = {"in": 40, "out": 38, "rejected": 2, "rejected_by_reason": {"too long": 2}}
    page = Page(render(small_report(row("p", "Daring", 0.7, unparsed=0.125), items=items))).all_text()
    assert "p gave answers that could not be parsed: up to 12.5% of the answers in a row." in page
    assert "2 of 40 items were rejected and are not counted in any number (too long: 2)." in page


def test_a_clean_report_has_no_warnings() -> None:
    items = {"in": 40, "out": 40, "rejected": 0, "rejected_by_reason": {}}
    assert "Read this first" not in render(small_report(row("p", "Daring", 0.7), items=items))


def test_a_report_of_the_all_form_needs_no_one_rows() -> None:
    text = Page(render(small_report(row("p", "Daring", 0.7, metric="all")))).all_text()
    assert "p: All is 0.70 on 1 pole." in text


def test_a_report_without_a_title_is_named_after_its_policies() -> None:
    report = small_report(row("p", "Daring", 0.7))
    del report["title"]
    assert "Evaluation of p" in Page(render(report)).all_text()


def test_every_policy_has_its_bar_on_every_axis_and_its_curves(report: dict[str, Any]) -> None:
    page = Page(render(report))
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
    assert labels == [
        "One of every policy on Risk",
        "Loss curves of pft",
        "gradient norm of pft",
        "learning rate of pft",
    ]
    text = page.all_text()
    assert "pft, Risk / Careful: 0.953, 95% interval 0.933 to 0.973, n = 300" in text
    assert "first pole" in text
    assert "second pole" in text
    assert "Each point averages up to 4 steps." in text


def test_the_same_report_is_the_same_page(report: dict[str, Any]) -> None:
    assert render(report) == render(report)


def test_a_name_with_a_dollar_is_a_name(report: dict[str, Any]) -> None:
    for found in report["rows"]:
        found["policy"] = f"${found['policy'][:3]}$"
    assert Page(render(report)).all_text().count("$pft$") > 4


def test_what_was_not_trained_is_grey_beside_what_was() -> None:
    trained = [row(name, "Daring", 1.0, trained_pole=True) for name in ("sft", "pft")]
    assert policy_colors([row("base", "Daring", 1.0), *trained]) == {"base": 0, "sft": 2, "pft": 1}
    assert policy_colors([row("only", "Daring", 1.0)]) == {"only": 1}


def test_a_policy_has_a_card_and_a_sentence_for_each_part_of_the_data() -> None:
    rows = [row("pft", "Daring", value) | {"part": part} for part, value in (("plain", 0.9), ("twins", 0.4))]
    page = render(small_report() | {"rows": rows})
    for part, value in (("plain", "0.90"), ("twins", "0.40")):
        assert f"pft, {part}: One is {value} on 1 pole." in page
        assert f'<div class="name">pft, {part}</div>\n<div class="big number">{value}</div>' in page
    assert page.count('<span class="swatch"></span>pft</li>') == 1


@pytest.mark.parametrize(("value", "text"), [(0.34, "0.3 s"), (42.2, "42 s"), (9.97, "10 s"), (185.0, "3 min 05 s")])
def test_durations_are_written_for_reading(value: float, text: str) -> None:
    assert seconds(value) == text


def test_a_missing_number_is_empty() -> None:
    assert (number(None), number(0.126)) == ("", "0.13")


def test_a_training_run_without_rows_shows_its_curves_and_no_empty_table() -> None:
    steps = [{"step": s, "loss_first": 1.0 / s, "grad_norm": 1.0, "lr": 0.1} for s in (1, 2, 3)]
    report = small_report(title="Training of t", training={"t": steps}) | {"rows": []}
    text = Page(render(report)).all_text()
    assert "Training of t" in text
    assert "first pole" in text
    assert "All numbers" not in text


def test_a_metric_from_outside_is_explained_and_drawn_where_it_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METRICS, "_entries", {name: METRICS[name] for name in METRICS})
    METRICS.add("own", Metric("My own", "what it means", "pole", None, is_right=True))
    text = render(small_report(row("pft", "Daring", 0.9), row("pft", "Daring", 0.8, metric="own")))
    assert "<dt>My own</dt><dd>what it means</dd>" in text
    assert "My own of every policy on Risk" in text
