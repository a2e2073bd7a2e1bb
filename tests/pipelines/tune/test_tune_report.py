"""The report of a search: its files are whole, escaped and hold every trial."""

import csv
import io
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import product
from typing import Any

import pytest

from pft_core.files import read_json
from pipelines.tune.search_points import ratio_name
from pipelines.tune.search_report import heat_panels, heat_tiles, mark_of, render, write_search

HOSTILE = "<script>alert(1)</script> & \"Co\" 'x'"
GRID = (0, 0.25, 0.5, 1, 2)
MODES = ("grid", "soup", "asha", "optuna")


def t_of(alpha: float, beta: float) -> float | str | None:
    if alpha == 0 or beta == 0:
        return None if alpha == beta else "inf" if beta == 0 else "-inf"
    return math.log(alpha / beta)


def values(first: float, second: float) -> dict[str, Any]:
    """Return the numbers of a measured trial or cell."""
    both = max(0.0, first + second - 1)
    numbers = {"pole_first": first, "pole_second": second, "worse_pole": min(first, second), "both_right": both}
    intervals = {name: [max(0.0, value - 0.06), min(1.0, value + 0.05)] for name, value in numbers.items()}
    low, high = intervals["both_right"]
    return {**numbers, "low": low, "high": high, "intervals": intervals, "all_first": None, "all_second": None}


def unsure(first: float, second: float) -> dict[str, Any]:
    """Return numbers with intervals from 0 to 1, so that drawings cover that range."""
    numbers = values(first, second)
    return numbers | {"intervals": {name: [0.0, 1.0] for name in numbers["intervals"]}}


NO_VALUES = {**dict.fromkeys(values(1, 1)), "intervals": {}}


def trial(alpha: float, beta: float, numbers: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "alpha": alpha,
        "beta": beta,
        "t": t_of(alpha, beta),
        "source": "trained",
        "changes": {},
        "status": "finished" if numbers else "failed",
        "error": None,
        "run_id": f"run-{alpha}-{beta}",
        "run_dir": f"runs/{alpha}-{beta}",
        "steps": 150,
        "seconds": 17.25,
        "attempt": 1,
        "rung_losses": [],
        "parents": [],
        "weights": [],
        **(numbers or NO_VALUES),
        **changes,
    }


def reached(alpha: float, beta: float) -> dict[str, Any]:
    """Return the numbers of a ratio: the larger a side's share, the higher its accuracy."""
    share = alpha / (alpha + beta) if alpha + beta else 0.5
    peak = 0.5 if alpha + beta == 0 else 0.96
    return values(round(peak * share**0.25, 4), round(peak * (1 - share) ** 0.2, 4))


def cell(alpha: float, beta: float, source: str, index: int, found: dict[str, Any]) -> dict[str, Any]:
    same = {key: found[key] for key in (*NO_VALUES, "status", "changes")}
    return {"alpha": alpha, "beta": beta, "t": t_of(alpha, beta), "source": source, "trial": index, **same}


def report_of(mode: str = "grid", *, levels: tuple[float, ...] = GRID, **changes: Any) -> dict[str, Any]:
    """Make a whole report: the cells of a grid by their distinct ratios, or 12 draws of optuna."""
    trials = [trial(0, 0, reached(0, 0), source="base", steps=None, seconds=3.0, run_id=None)]
    cells = []
    if mode == "optuna":
        for i in range(12):
            alpha = math.exp(math.sin(3.0 * i) * 2)
            found = {**reached(alpha, 1), "all_first": 0.5, "all_second": 0.25}
            trials.append(trial(alpha, 1.0, found, changes={"train.lr": 0.0003 * (i + 1), "lora.r": 8}))
            cells.append(cell(alpha, 1.0, "trained", len(trials) - 1, trials[-1]))
    else:
        places = {"base": 0}
        for alpha, beta in product(levels, levels):
            name = ratio_name(t_of(alpha, beta))
            if is_new := name not in places:
                places[name] = len(trials)
                trials.append(trial(alpha, beta, reached(alpha, beta)))
                if mode == "soup" and name not in ("0:1", "1:1", "1:0"):
                    trials[-1] |= {"source": "soup", "steps": None}
            found = trials[places[name]]
            source = found["source"] if is_new or found["source"] != "trained" else "same_ratio"
            cells.append(cell(alpha, beta, source, places[name], found))
    by_first = sorted(range(1, len(trials)), key=lambda i: trials[i]["pole_first"])
    best = max(range(len(trials)), key=lambda i: trials[i]["worse_pole"])
    report = {
        "title": "Search of quickstart",
        "mode": mode,
        "name": "quickstart",
        "metric": "worse_pole",
        "form": "one",
        "axes": [{"name": "Risk", "first": "Daring", "second": "Careful"}],
        "cells": cells,
        "trials": trials,
        "front": by_first,
        "hypervolume": 0.8123,
        "knee": best,
        "pick": {"trial": best, **{k: trials[best][k] for k in ("alpha", "beta", "t", "source")}, "why": "It is best."},
        "verification": [],
        "sentences": ["The pick is 1:1.", "Both ends fail on one side."],
        "warnings": ["Two ratios are within each other's interval."],
        "notes": ["Cells of one ratio share a training."],
        "timings": {"search": 200.5, "verify": None},
        "config": {"model": "tiny", "train": {"lr": 0.01}},
        "digests": {"data": "0123456789abcdef"},
        "recipe": "chosen.yaml",
        "model": "quickstart@champion",
    }
    if mode == "soup":
        add_verification(report, "1:8")
        add_verification(report, "2:1")
    if mode == "asha":
        for index in (1, 5):
            stop(report, index)
    return {**report, **changes}


def add_verification(report: dict[str, Any], name: str) -> None:
    trials = report["trials"]
    soup = next(i for i, found in enumerate(trials) if ratio_name(found["t"]) == name)
    ends = [i for i, found in enumerate(trials) if found["source"] == "trained"][:2]
    trials[soup] |= {"parents": ends, "weights": [0.25, 0.75]}
    better = values(trials[soup]["pole_first"] + 0.02, trials[soup]["pole_second"])
    trials.append(trial(trials[soup]["alpha"], trials[soup]["beta"], better))
    gap = {"soup": 0.5, "trained": 0.52, "gap": 0.02, "low": -0.012, "high": 0.051}
    found = {"t": trials[soup]["t"], "soup": soup, "trained": len(trials) - 1}
    report["verification"].append({**found, "metric": {"worse_pole": gap, "both_right": gap}})


def stop(report: dict[str, Any], index: int) -> None:
    """Stop a trial early: it and all its cells lose their numbers, and it is no longer on the front."""
    stopped = {**NO_VALUES, "status": "stopped"}
    report["trials"][index] |= {**stopped, "rung_losses": [0.91, 0.87]}
    for found in report["cells"]:
        found |= stopped if found["trial"] == index else {}
    report["front"] = [i for i in report["front"] if i != index]


def all_failed() -> dict[str, Any]:
    report = report_of(front=[], hypervolume=None, knee=None, pick=None, model=None)
    for index in range(len(report["trials"])):
        stop(report, index)
    report["trials"][1] |= {"status": "failed", "error": "out of memory", "run_id": None, "seconds": None}
    return report


def single_trial() -> dict[str, Any]:
    """Make a report with one cell, one trial and no base."""
    report = report_of(levels=(1,))
    report["trials"] = report["trials"][1:]
    report["cells"][0]["trial"] = 0
    report["pick"] |= {"trial": 0}
    return {**report, "front": [0], "knee": None}


class Page(HTMLParser):
    """Collects tags and attributes, and checks that tags close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [value or "" for key, value in self.attributes if key == name]


@pytest.mark.parametrize(
    ("t", "name"),
    [
        (0.0, "1:1"),
        (math.log(0.25 / 2), "1:8"),
        (math.log(2.5), "2.5:1"),
        (math.log(1234.5678 / 3.1), "398:1"),
        (math.log(1e-4), "1:10000"),
        ("-inf", "0:1"),
        ("inf", "1:0"),
        (None, "base"),
    ],
)
def test_a_ratio_is_named_with_its_smaller_side_as_one(t, name) -> None:
    assert ratio_name(t) == name


def test_the_heat_map_shows_means_of_both_poles_and_the_panels_that_have_values() -> None:
    report = report_of()
    assert [name for name, *_ in heat_panels(report)] == ["One (%)", "Worse pole (%)", "Both right (%)"]
    place = next(i for i, c in enumerate(report["cells"]) if (c["alpha"], c["beta"]) == (1, 1))
    report["cells"][place] |= {"pole_first": 0.5, "pole_second": 0.75, "all_first": 0.25, "all_second": 0.5}
    shown = {name: values for name, _, values in heat_panels(report)}
    assert list(shown) == ["One (%)", "All (%)", "Worse pole (%)", "Both right (%)"]
    assert (shown["One (%)"][place], shown["All (%)"][place]) == (0.625, 0.375)
    assert [name for name, *_ in heat_panels({**report, "form": "all"})] == [
        "All (%)",
        "Worse pole (%)",
        "Both right (%)",
    ]
    assert heat_panels(report_of("optuna")) == []


def test_every_combination_of_other_changes_has_panels_of_its_own() -> None:
    report = report_of(levels=(1, 2))
    slow, fast = ([{**c, "changes": {"train.lr": lr}} for c in report["cells"]] for lr in (0.001, 0.01))
    report["cells"] = slow + fast
    report["trials"][report["pick"]["trial"]]["changes"] = {"train.lr": 0.01}
    found = heat_panels(report)
    assert [(name, len(cells)) for name, cells, _ in found][2:4] == [
        ("Both right (%), train.lr = 0.001", 4),
        ("One (%), train.lr = 0.01", 4),
    ]
    tiles = heat_tiles(report, report["trials"][report["pick"]["trial"]])
    assert [sum(tile.is_picked for tile in panel.tiles) for panel in tiles] == [0, 0, 0, 2, 2, 2]


def test_a_cell_says_where_its_number_is_from() -> None:
    report = report_of("soup")
    marks = {(c["alpha"], c["beta"]): mark_of(c, trials=report["trials"]) for c in report["cells"]}
    assert marks[0, 0] == "base"
    assert (marks[0, 0.25], marks[0, 2]) == ("trained", "= 0:0.25")
    assert (marks[0.25, 0.5], marks[1, 2]) == ("soup", "soup")
    asha = report_of("asha")
    stopped = [mark_of(c, trials=asha["trials"]) for c in asha["cells"] if c["trial"] == 1]
    assert stopped == ["stopped"] * 4


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_writes_whole_files_that_load_nothing(mode, tmp_path) -> None:
    report = report_of(mode)
    paths = write_search(report, tmp_path)
    names = {"report_json", "report_html", "accuracy_svg", "pareto_svg", "table_csv"}
    assert set(paths) == names | ({"heat_map_svg"} if mode != "optuna" else set())
    assert sorted(tmp_path.iterdir()) == sorted(paths.values())
    text = paths["report_html"].read_text()
    page = Page(text)
    assert not page.open
    assert not {"script", "iframe", "link", "img", "object"} & set(page.tags)
    assert all(value.startswith("#") for value in page.values("href"))
    assert {value[1:] for value in page.values("href")} <= set(page.values("id"))
    assert not page.values("src")
    assert "http:" not in text
    assert "url(" not in text
    assert all(sentence.replace("'", "&#39;") in text for sentence in [*report["sentences"], *report["warnings"]])
    assert len(re.findall(r'id="trial-\d+"', text)) == len(report["trials"])
    assert text.count('class="drawing') == len(paths) - 3
    assert read_json(paths["report_json"], what="a report")["cells"] == report["cells"]


@pytest.mark.parametrize("report", [all_failed(), single_trial(), report_of(levels=(0.3, 1, 1.7, 3, 5.1, 6.7))])
def test_reports_with_no_number_one_trial_or_many_trials_are_shown(report, tmp_path) -> None:
    paths = write_search(report, tmp_path)
    assert not Page(paths["report_html"].read_text()).open
    assert "heat_map_svg" in paths
    assert ("pareto_svg" in paths) == ("accuracy_svg" in paths) == (report["pick"] is not None)
    assert len(list(csv.DictReader(io.StringIO(paths["table_csv"].read_text())))) == len(report["trials"])


def test_a_trial_without_numbers_says_why() -> None:
    text = render(all_failed())
    assert '<span class="bad">failed</span>: out of memory' in text
    assert "stopped" in text
    assert "0.910<br>0.870" in text


@pytest.mark.parametrize("mode", MODES)
def test_drawings_are_xml_of_their_own(mode, tmp_path) -> None:
    report = report_of(mode, axes=[{"name": "a", "first": HOSTILE, "second": "<b>&"}])
    drawings = [path for name, path in write_search(report, tmp_path).items() if name.endswith("_svg")]
    assert drawings
    for path in drawings:
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in path.read_text()
        assert not any("href" in name for element in root.iter() for name in element.attrib)


def test_the_heat_map_outlines_every_cell_of_the_picked_ratio(tmp_path) -> None:
    report = report_of()
    # 1:1 is the pick; alpha = beta in 4 of the cells, in each of 3 panels.
    panels = heat_tiles(report, report["trials"][report["pick"]["trial"]])
    assert [sum(tile.is_picked for tile in panel.tiles) for panel in panels] == [4] * 3
    # Only frames are drawn with lines 3 pixels wide.
    assert write_search(report, tmp_path)["heat_map_svg"].read_text().count("stroke-width: 3;") == 4 * 3


def test_the_same_report_is_the_same_files(tmp_path) -> None:
    first = {name: path.read_bytes() for name, path in write_search(report_of("soup"), tmp_path / "a").items()}
    again = {name: path.read_bytes() for name, path in write_search(report_of("soup"), tmp_path / "b").items()}
    assert first == again


def test_a_drawing_that_a_later_report_lacks_is_removed(tmp_path) -> None:
    write_search(report_of(), tmp_path)
    write_search(report_of("optuna"), tmp_path)
    assert not (tmp_path / "heat_map.svg").exists()


def test_texts_are_escaped_and_credentials_masked(tmp_path) -> None:
    report = report_of(title=HOSTILE, sentences=[HOSTILE], warnings=["<i>x"], notes=["<b>y"], name="<u>", recipe="<s>")
    report["trials"][2] |= {"error": "no answer from postgresql://ann:secret@db/x <em>", "changes": {"<tt>": "<tt>"}}
    report["config"]["tracking"] = {"uri": "https://ann:secret@host/"}
    report["pick"]["why"] = "<q>"
    paths = write_search(report, tmp_path)
    assert not any("secret" in path.read_text() for path in paths.values())
    assert not {"script", "i", "b", "u", "s", "em", "tt", "q"} & set(Page(paths["report_html"].read_text()).tags)


@pytest.mark.parametrize("mode", MODES)
def test_the_table_has_every_trial_with_the_same_numbers(mode, tmp_path) -> None:
    report = report_of(mode)
    with write_search(report, tmp_path)["table_csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, found in zip(rows, report["trials"], strict=True):
        for key in ("alpha", "beta", "pole_first", "pole_second", "worse_pole", "both_right", "steps", "seconds"):
            assert (float(row[key]) if row[key] else None) == found[key]
        assert (row["t"] or None) == (None if found["t"] is None else str(found["t"]))
        assert (row["run_id"] or None) == found["run_id"]
        assert [row["both_right_low"], row["both_right_high"]] == [
            "" if end is None else repr(end) for end in (found["low"], found["high"])
        ]
        for key, value in found["changes"].items():
            assert float(row[f"changes.{key}"]) == value


def test_verification_shows_soup_trained_and_gap_for_both_metrics() -> None:
    text = render(report_of("soup"))
    start = text.index("Soups compared with training")
    part = text[start : text.index("All trials", start)]
    assert part.count("+2.0") == 4  # two ratios, two metrics
    assert "-1.2 to +5.1" in part
    assert "worse pole" in part
    assert "both right" in part
    assert "0.25 of" in text
