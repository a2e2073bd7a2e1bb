"""The tables keep the paper's layout, escape every text, and describe the rows in sentences."""

import random
import re
from typing import Any

import pytest

from pipelines.compare.report.claims import Comparison, differences, headline_sentences, join_names, position_mark
from pipelines.compare.report.latex import latex, latex_text
from pipelines.compare.report.markdown import markdown, markdown_text
from pipelines.compare.report.tables import by_metric, by_pole

AXES = {"Risk": ("Daring", "Careful"), "Time": ("Now", "Later")}
MEANS = {
    "position": 0.5,
    "bag_of_words": 0.7712,
    "prompt_only": 0.5134,
    "sft:first": 0.5321,
    "sft:mixed": 0.8156,
    "pft": 0.8567,
}
UNSEEDED = ("position", "bag_of_words", "prompt_only")


def row(method: str, metric: str, mean: float, axis: str | None, pole: str | None, **changes: Any) -> dict[str, Any]:
    seeds = 1 if method in UNSEEDED else 3
    own = {
        "method": method,
        "axis": axis,
        "pole": pole,
        "metric": metric,
        "mean": mean,
        "sd": None if seeds == 1 else 0.0123,
        "low": mean - 0.0234,
        "high": mean + 0.0234,
        "n_items": 200 if axis else 400,
        "n_seeds": seeds,
        "run_ids": [] if method in UNSEEDED[:2] else [f"{method.replace(':', '-')}-{seed}" for seed in range(seeds)],
        "position_baseline": None if metric in ("leak", "unparsed") else 0.5,
        "variant": None,
    }
    return own | changes


def rows_of(method: str, mean: float, **changes: Any) -> list[dict[str, Any]]:
    """Make rows of One, All, both right, flip, leak and unparsed for a method, all different and near a mean."""
    rng = random.Random(f"{method}{changes}")
    rows = []
    for metric, share in (("one", 1.0), ("all", 0.8), ("both_right", 0.7), ("flip", 0.9), ("leak", 0.1)):
        near = mean * share
        rows.append(row(method, metric, near, None, None, **changes))
        for axis, poles in AXES.items():
            for pole in (None, *poles) if metric in ("one", "all") else (None,):
                rows.append(row(method, metric, near + rng.uniform(-0.03, 0.03), axis, pole, **changes))
    return [*rows, row(method, "unparsed", 0.0, None, None, **changes)]


def run(method: str, seed: int | None, **changes: Any) -> dict[str, Any]:
    own = {
        "run_id": f"{method.replace(':', '-')}-{seed or 0}",
        "method": method,
        "seed": seed,
        "variant": None,
        "data_digest": "da7a" * 4,
        "test_digest": "7e57" * 4,
        "template_digest": "7e3b" * 4,
        "commit": "c0ffee" * 6 + "c0de",
        "status": "finished",
        "error": None,
        "seconds": 71.0,
    }
    return own | changes


def verdict(b: str, difference: float, p_holm: float, **changes: Any) -> dict[str, Any]:
    own = {
        "metric": "one",
        "axis": None,
        "pole": None,
        "variant": None,
        "a": "pft",
        "b": b,
        "difference": difference,
        "test": "paired_t",
        "p": p_holm / 5,
        "p_holm": p_holm,
        "n": 3,
    }
    return own | changes


def comparison(means: dict[str, float] | None = None, **parts: Any) -> dict[str, Any]:
    """Make the report of a comparison of six methods with three seeds."""
    means = means or MEANS
    seeded = [method for method in means if method not in UNSEEDED]
    base = {
        "suite": "table2_vcd",
        "title": "Value conflicts",
        "size": "tiny",
        "captions": ["Data: toyworld."],
        "rows": [made for method, mean in means.items() for made in rows_of(method, mean)],
        "tests": [
            verdict("sft:first", 0.3246, 0.0012),
            verdict("sft:first", 0.3246, 0.25, test="permutation"),
            verdict("sft:mixed", 0.0411, 0.2),
            verdict("prompt_only", 0.3433, 0.0008, test="mcnemar", n=400),
            verdict("sft:first", 0.3, 0.002, axis="Risk"),
        ],
        "curves": [
            {"method": m, "seed": seed, "variant": None, "steps": steps(seed)} for m in seeded for seed in range(3)
        ],
        "runs": [run("prompt_only", None), *(run(m, seed) for m in seeded for seed in range(3))],
        "timings": {"total": 640.0},
        "config": {"name": "table2_vcd", "reference": "pft"},
        "digests": {"code": "abc123"},
    }
    return {**base, **parts}


def steps(seed: int, count: int = 100) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {"step": s, "loss_first": 2 / s**0.5 + rng.uniform(0, 0.1), "loss_second": 2.4 / s**0.5}
        for s in range(1, count + 1)
    ]


def variants_report(values: tuple[Any, ...] = (100, 400, 1600)) -> dict[str, Any]:
    """Make a report in which the number of training records varies."""
    rows = [
        made
        for i, value in enumerate(values)
        for method, mean in MEANS.items()
        for made in rows_of(
            method,
            mean - 0.03 * (len(values) - i) * (method not in UNSEEDED),
            variant={"name": "train_size", "value": value},
        )
    ]
    curves = [{"method": "pft", "seed": 0, "variant": value, "steps": steps(0)} for value in values]
    runs = [run(m, s, variant=value) for value in values for m in ("sft:first", "sft:mixed", "pft") for s in range(3)]
    tests = [verdict("sft:mixed", 0.03, 0.01, variant={"name": "train_size", "value": values[0]})]
    return comparison(rows=rows, curves=curves, runs=runs, tests=tests)


def without_seed(report: dict[str, Any], method: str, seed: int, error: str = "ran out of memory") -> dict[str, Any]:
    """Return the report as if one seed of a method had crashed."""
    rows = [r | {"n_seeds": 2} if r["method"] == method else r for r in report["rows"]]
    failed = {"status": "failed", "error": error, "run_id": None, "data_digest": None, "seconds": None}
    runs = [r | failed if (r["method"], r["seed"]) == (method, seed) else r for r in report["runs"]]
    return report | {"rows": rows, "runs": runs}


def line_of(text: str, method: str) -> str:
    return next(line for line in text.splitlines() if line.lstrip("| ").startswith(method))


def test_markdown_has_methods_as_rows_and_poles_and_their_average_as_columns() -> None:
    lines = markdown(comparison()).splitlines()
    head = next(line for line in lines if line.startswith("| Multi-choice One (%)"))
    assert head == "| Multi-choice One (%) | Risk: Daring | Risk: Careful | Time: Now | Time: Later | Average |"
    first = lines[lines.index(head) + 2 :]
    # Order of first appearance, and the yardsticks last, below their heading.
    names = [line.split(" | ")[0].lstrip("| ") for line in first[:7]]
    assert names == [
        "prompt\\_only (n=1)",
        "sft:first",
        "sft:mixed",
        "pft",
        "*yardsticks*",
        "position only",
        "bag-of-words probe",
    ]
    assert any(line.startswith("| Multi-choice All (%)") for line in first)


def test_a_cell_holds_the_mean_and_the_deviation_of_its_row() -> None:
    report = comparison()
    found = next(r for r in report["rows"] if (r["method"], r["metric"], r["pole"]) == ("pft", "one", "Daring"))
    found |= {"mean": 0.91234, "sd": 0.02345}
    assert line_of(markdown(report), "pft").split(" | ")[1] == "**91.2** \u00b1 2.3"
    assert r"\textbf{91.2} $\pm$ 2.3" in latex(report)


def test_one_seed_has_no_deviation_even_where_a_row_holds_one() -> None:
    report = comparison()
    for r in report["rows"]:
        r |= {"n_seeds": 1, "sd": 0.0123}
    assert "\u00b1 1.2" not in markdown(report)
    only_one = comparison(rows=report["rows"], runs=[run(method, 0) for method in MEANS])
    assert "One seed, so no standard deviation." in markdown(only_one)


def test_the_best_method_of_a_column_is_bold_and_a_yardstick_never_is() -> None:
    report = comparison(MEANS | {"bag_of_words": 0.99})
    average = {m: line_of(markdown(report), name).split(" | ")[5] for m, name in (("pft", "pft"), ("bow", "bag-of"))}
    assert average["pft"].startswith("**85.7**")
    assert "**" not in average["bow"]


def test_methods_that_look_equal_are_both_bold() -> None:
    # 0.85671 and 0.85669 are both shown as 85.7
    text = markdown(comparison(MEANS | {"pft": 0.85671, "sft:mixed": 0.85669}))
    for method in ("pft", "sft:mixed"):
        assert line_of(text, method).split(" | ")[5].startswith("**85.7**")


def test_of_leak_and_unparsed_the_lowest_is_best() -> None:
    table = by_metric(Comparison(comparison()), None)
    assert [column.name for column in table.columns] == ["Both right", "Flip", "Leak", "Unparsed"]
    best = {
        c.name: [ln.method for ln in table.blocks[0].methods if ln.cells[i].best] for i, c in enumerate(table.columns)
    }
    assert best["Leak"] == ["prompt_only"]  # 0.1 x 0.5134 is the smallest of the four
    assert best["Flip"] == ["pft"]
    assert len(best["Unparsed"]) == 4  # all are 0
    assert "(for Leak and Unparsed, the lowest)" in " ".join(table.caption)


def test_a_failed_seed_is_marked_and_named() -> None:
    text = markdown(without_seed(comparison(), "sft:mixed", 2))
    assert "| sft:mixed (n=2/3) |" in text
    assert "1 of 10 runs failed: sft:mixed seed 2." in text
    assert "n: the number of seeds, if not 3 (2 of 3 finished)." in text
    assert "2 of 3" not in markdown(comparison())
    assert "2/3" not in markdown(comparison())


def test_a_method_without_any_finished_seed_keeps_its_line() -> None:
    report = comparison()
    dead = [run("dpo", seed, status="failed", error="no memory") for seed in range(3)]
    text = markdown(comparison(runs=[*report["runs"], *dead]))
    assert line_of(text, "dpo") == "| dpo (n=0/3) |" + " \u2013 |" * 5
    assert "No run of dpo has finished" in text


def test_seeds_that_differ_between_variants_are_marked_in_their_cells() -> None:
    report = variants_report()
    missing = [r for r in report["rows"] if r["method"] == "pft" and r["variant"]["value"] == 400]
    for r in missing:
        r["n_seeds"] = 2
    next(r for r in report["runs"] if (r["method"], r["variant"], r["seed"]) == ("pft", 400, 2))["status"] = "failed"
    line = line_of(markdown(report), "pft")
    assert line.count("(n=2/3)") == 1
    assert "(n=2/3)" in line.split(" | ")[2]  # of 100, 400, 1600
    assert "1 of 27 runs failed: pft seed 2 (train\\_size 400)." in markdown(report)


@pytest.mark.parametrize(
    ("low", "high", "mark"),
    [(0.51, 0.6, ""), (0.5, 0.6, "\u2020"), (0.45, 0.55, "\u2020"), (0.4, 0.49, "\u2021")],
)
def test_an_interval_that_reaches_the_position_baseline_is_marked(low: float, high: float, mark: str) -> None:
    assert position_mark(row("pft", "one", 0.5, None, None, low=low, high=high)) == mark
    assert position_mark(row("position", "one", 0.5, None, None, low=low, high=high)) == ""
    assert position_mark(row("pft", "leak", 0.5, None, None, low=low, high=high)) == ""


def test_the_caption_names_the_methods_that_position_alone_would_reach() -> None:
    caption = " ".join(by_pole(Comparison(comparison()), None).caption)
    # 0.5134 - 0.0234 = 0.49 <= 0.5; 0.5321 - 0.0234 > 0.5
    assert "The interval of One reaches the position baseline (50.0%) for prompt_only." in caption
    # 0.8 x 0.5321 + 0.0234 < 0.5
    assert "The interval of All lies below the position baseline (50.0%) for prompt_only and sft:first." in caption


def test_winning_and_not_winning_are_said_alike() -> None:
    won = " ".join(headline_sentences(Comparison(comparison())))
    assert "pft has the highest One of 4 methods, 85.7 \u00b1 1.2% (mean over axes); next is sft:mixed" in won
    lost = " ".join(headline_sentences(Comparison(comparison(MEANS | {"pft": 0.80}))))
    assert "pft does not lead on One: sft:mixed has the highest mean over axes, 81.6 \u00b1 1.2%; pft has 80.0" in lost
    assert "rank 2 of 4." in lost
    equal = " ".join(headline_sentences(Comparison(comparison(MEANS | {"pft": 0.81563}))))
    assert "pft ties for the highest One of 4 methods, 81.6 \u00b1 1.2%, with sft:mixed." in equal


def test_a_reference_without_a_finished_run_is_said() -> None:
    means = {method: mean for method, mean in MEANS.items() if method != "pft"}
    report = comparison(means, tests=[])
    report["runs"] += [run("pft", seed, status="failed", error="x") for seed in range(3)]
    sentences = " ".join(headline_sentences(Comparison(report)))
    assert "pft has no finished run with One, so nothing is compared with it." in sentences
    assert "3 of 10 runs failed: pft seed 0, pft seed 1 and pft seed 2." in sentences


def test_the_tests_decide_what_is_above_below_and_open() -> None:
    sentences = differences(Comparison(comparison()), "one", None)
    # sft:mixed: 0.2 after Holm; the row of Risk is no mean over axes; 2 / 2^3 = 0.25
    assert sentences == [
        "After Holm's correction (paired t-test over 3 seeds, McNemar's test on 400 items), pft is significantly above "
        "sft:first and prompt_only; not significantly different from sft:mixed.",
        "A sign-flip test over 3 seeds cannot reach p below 0.25, so it cannot confirm this.",
    ]
    below = comparison(tests=[verdict("sft:mixed", -0.05, 0.01)])
    assert differences(Comparison(below), "one", None) == [
        "After Holm's correction (paired t-test over 3 seeds), pft is significantly below sft:mixed."
    ]


def test_sign_flips_that_confirm_are_told_from_those_that_do_not() -> None:
    tests = [verdict(b, 0.1, 0.001, n=8) for b in ("dpo", "ipo")]
    flips = [verdict(b, 0.1, p, n=8, test="permutation") for b, p in (("dpo", 0.01), ("ipo", 0.3))]
    assert differences(Comparison(comparison(tests=tests + flips)), "one", None)[1] == (
        "A sign-flip test over seeds confirms the difference from dpo."
    )
    assert differences(Comparison(comparison(tests=[tests[0], flips[0]])), "one", None)[1] == (
        "A sign-flip test over seeds confirms all significant differences."
    )


def test_a_probe_of_words_above_all_methods_is_said_in_words() -> None:
    def sentences(probe: float) -> str:
        return " ".join(by_pole(Comparison(comparison(MEANS | {"bag_of_words": probe})), None).caption)

    assert "On One, no method's interval is above the bag-of-words probe (90.0%): " in sentences(0.9)
    assert "On One, every method's interval is above the bag-of-words probe (40.0%)." in sentences(0.4)
    assert (
        "On One, intervals above the bag-of-words probe (77.1%): sft:mixed and pft; not above: prompt_only and "
        "sft:first." in sentences(0.7712)
    )


def test_the_caption_says_what_the_numbers_rest_on() -> None:
    caption = " ".join(by_pole(Comparison(comparison()), None).caption)
    assert caption.startswith("Value conflicts. Data: toyworld. Shares in %.")
    assert "Test items: 400 for One, 400 for All." in caption
    assert "Mean \u00b1 standard deviation over 3 seeds." in caption
    assert "Intervals: 95%, from a bootstrap clustered by scenario, over the mean of the seeds." in caption
    assert "Digests: training data da7ada7ada7a; test data 7e577e577e57; prompt template 7e3b7e3b7e3b;" in caption
    assert caption.endswith("commit c0ffeec0ffee.")


def test_what_varies_becomes_columns() -> None:
    lines = markdown(variants_report()).splitlines()
    assert "| Multi-choice One (%) | 100 | 400 | 1600 |" in lines
    assert "## Each pole, train\\_size 1600" in lines
    # A bare value, as rates have it, is the same variant.
    rate = row("pft", "pairs_per_s", 123.456, None, None, variant=400, low=None, high=None, n_items=None, sd=2.0)
    text = markdown(variants_report() | {"rows": [*variants_report()["rows"], rate]})
    assert "| pft | \u2013 | 123 \u00b1 2 | \u2013 |" in text


def latex_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("%")]


def width_of(line: str) -> int:
    """Count the columns of a table line: unescaped & and the spans of \\multicolumn."""
    spans = [int(span) - 1 for span in re.findall(r"\\multicolumn\{(\d+)\}", line)]
    return 1 + len(re.findall(r"(?<!\\)&", line)) + sum(spans)


HOSTILE = r"a&b_c%d<e>{f}$g#h\i~j^k|l[m]*n`o"


@pytest.mark.parametrize("name", ["pft", HOSTILE])
@pytest.mark.parametrize("varies", [False, True])
def test_latex_lines_have_one_width_and_braces_close(name: str, varies: bool) -> None:
    report = variants_report() if varies else comparison()
    rows = [r | {"method": name if r["method"] == "pft" else r["method"]} for r in report["rows"]]
    for r in rows:
        r |= {"axis": r["axis"] and r["axis"] + name, "pole": r["pole"] and r["pole"] + name}
    text = latex(report | {"rows": rows, "title": HOSTILE, "captions": [HOSTILE]})
    tabulars = text.split(r"\begin{tabular}{")[1:]
    assert len(tabulars) == (7 if varies else 2)
    for tabular in tabulars:
        columns = len(tabular.split("}")[0])
        lines = [line for line in tabular.split(r"\end{tabular}")[0].splitlines() if line.endswith(r" \\")]
        assert len(lines) > 5
        assert {width_of(line) for line in lines} == {columns}
    depth = 0
    for sign in re.findall(r"(?<!\\)[{}]", "\n".join(latex_lines(text))):
        depth += 1 if sign == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") == len(tabulars)


def test_latex_keeps_the_yardsticks_below_a_rule() -> None:
    lines = latex(comparison()).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("position only &"))
    assert lines[at - 1] == r"\cmidrule(lr){1-6}"
    assert lines[at - 2].startswith("pft &")


def test_latex_heads_the_poles_with_their_axis() -> None:
    text = latex(comparison())
    assert r" & \multicolumn{2}{c}{Risk} & \multicolumn{2}{c}{Time} &  \\" in text
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}" in text
    assert r"Method & Daring & Careful & Now & Later & Average \\" in text


def test_labels_differ_and_hold_nothing_to_escape() -> None:
    labels = re.findall(r"\\label\{(.*?)\}", latex(variants_report()))
    assert len(set(labels)) == len(labels) == 7
    assert all(re.fullmatch(r"tab:[a-z0-9-]+", label) for label in labels)


def test_texts_are_escaped() -> None:
    assert latex_text("a&b_c%d<e") == r"a\&b\_c\%d\textless{}e"
    assert latex_text("\\ {x}\n$5 #1 ~^") == r"\textbackslash{} \{x\} \$5 \#1 \textasciitilde{}\textasciicircum{}"
    assert markdown_text("a|b_c*d<e>&") == r"a\|b\_c\*d\<e\>&amp;"
    assert markdown_text("a\n\nb") == "a b"


def test_a_name_with_a_bar_adds_no_column_to_markdown() -> None:
    rows = [r | {"method": "p|q" if r["method"] == "pft" else r["method"]} for r in comparison()["rows"]]
    lines = [line for line in markdown(comparison(rows=rows)).splitlines() if line.startswith("| p\\|q")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {7, 6}  # five columns and four


@pytest.mark.parametrize(
    ("names", "text"), [([], "none"), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_names_are_joined_for_reading(names: list[str], text: str) -> None:
    assert join_names(names) == text
