"""A comparison end to end: tiny, on real Ray actors."""

import json
from pathlib import Path

import pytest

from pft_core.errors import UserError
from pipelines.compare import job
from pipelines.compare.suite import Suite, load_suite, shipped_suites
from pipelines.strict import build

pytestmark = pytest.mark.ray

RUN = {
    "prompt": {"answer": "option", "condition_position": "after"},
    "encoding": {"max_length": 256},
    "lora": {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"},
    "train": {
        "pairs_per_step": 8, "max_steps": 3, "lr": 1e-2, "warmup_steps": 0, "precision": "fp32", "checkpoint_every": 0,
    },
}  # fmt: skip


def suite(methods: list[str], *, of_method=None, **changes) -> Suite:
    size = {"data": "toyworld", "base": "toyworld", "seeds": [0, 1], "test_per_axis": 8, "run": RUN}
    raw = {"name": "small", "title": "small", "methods": methods, "reference": methods[-1], **changes}
    return build(Suite, {**raw, "sizes": {"tiny": {**size, "of_method": of_method or {}}}}, source=lambda _: "")


def report(result) -> dict:
    return json.loads(Path(result["report_json"]).read_text())


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compare")


def test_methods_of_every_kind_end_in_one_report_and_are_not_run_again(ray_cluster, storage, monkeypatch) -> None:
    chosen = suite(["position", "bag_of_words", "prompt_only", "history", "caa", "controllable_po", "pft"])
    result = job.run(chosen, size="tiny", storage=storage)
    first = report(result)
    assert result["failed"] == 0
    assert {row["method"] for row in first["rows"]} == set(chosen.methods)
    assert {row["n_items"] for row in first["rows"] if row["axis"] is None} == {24}
    trained = [run for run in first["runs"] if run["method"] == "pft"]
    assert [run["seed"] for run in trained] == [0, 1]
    assert all(run["run_id"] and run["data_digest"] and run["template_digest"] for run in trained)
    # A control token is another wording than a description.
    digests = {run["method"]: run["template_digest"] for run in first["runs"]}
    assert digests["controllable_po"] != digests["pft"]

    again = report(job.run(chosen, size="tiny", storage=storage))
    assert again["rows"] == first["rows"]
    finished = sorted((storage / "compare" / "cells").glob("pft-*/job.json"))
    assert [json.loads(path.read_text())["attempt"] for path in finished] == [1, 1]


def test_a_seed_that_fails_is_shown_and_the_others_count(ray_cluster, storage) -> None:
    chosen = suite(["sft:first", "pft"], of_method={"sft:first": {"train.tokens_per_microbatch": 8}})
    found = report(job.run(chosen, size="tiny", storage=storage))
    failed = [run for run in found["runs"] if run["status"] == "failed"]
    assert [(run["method"], run["seed"]) for run in failed] == [("sft:first", 0), ("sft:first", 1)]
    assert "tokens_per_microbatch=8 is smaller than a pair" in failed[0]["error"]
    assert {row["method"] for row in found["rows"]} == {"pft"}


def test_variants_cut_data_and_axes(ray_cluster, storage) -> None:
    variants = [{"value": 24, "train_size": 24}, {"value": "Risk", "axes": ["Risk"]}]
    found = report(job.run(suite(["pft"], varies="cut", variants=variants), size="tiny", storage=storage))
    axes = {(row["variant"]["value"], row["axis"]) for row in found["rows"] if row["axis"]}
    assert ("Risk", "Risk") in axes
    assert ("Risk", "Pace") not in axes
    assert (24, "Pace") in axes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["pft", "dpoo"]}, "method 'dpoo' does not exist. Did you mean 'dpo'"),
        ({"metrics": ["one", "flop"]}, "metric 'flop' does not exist"),
        ({"reference": "dpo"}, "reference='dpo' is not among the methods"),
        ({"varies": "budget"}, "varies and variants go together"),
    ],
)
def test_a_suite_that_names_what_is_not_there_is_refused(change, message) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(".", r"\.")):
        suite(**{"methods": ["pft"], **change})


def test_an_unknown_axis_is_refused_before_anything_runs(ray_cluster, storage) -> None:
    chosen = suite(["pft"], varies="axes", variants=[{"value": "x", "axes": ["Risky"]}])
    with pytest.raises(UserError, match="no axis 'Risky'"):
        job.run(chosen, size="tiny", storage=storage)


def test_too_few_items_for_an_interval_are_refused(ray_cluster, storage) -> None:
    chosen = suite(["position", "prompt_only"])
    small = chosen.model_copy(update={"sizes": {"tiny": chosen.sizes["tiny"].model_copy(update={"test_per_axis": 1})}})
    with pytest.raises(UserError, match="an interval needs at least"):
        job.run(small, size="tiny", storage=storage)


def test_results_that_stand_on_other_data_or_wording_are_refused(ray_cluster, storage) -> None:
    chosen = suite(["pft"])
    first = report(job.run(chosen, size="tiny", storage=storage))["runs"][0]
    kept = storage / "compare" / "cells" / first["run_id"] / "job.json"
    found = json.loads(kept.read_text())
    for key in ("data_digest", "test_digest", "template_digest"):
        other = found | {"result": found["result"] | {key: "0123"}}
        kept.write_text(json.dumps(other))
        with pytest.raises(UserError, match=f"{key} differs between rows: .*0123"):
            job.run(chosen, size="tiny", storage=storage)
    kept.write_text(json.dumps(found))


def test_a_suites_file_says_only_where_it_differs(tmp_path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("name: own\ntitle: own\nmethods: [pft]\nsizes: {tiny: {run: {train: {max_steps: 7}}}}\n")
    size = load_suite(str(path), ["sizes.tiny.seeds=[4]"]).sizes["tiny"]
    assert (size.data, size.seeds) == ("toyworld", [4])
    assert (size.run["train"]["max_steps"], size.run["train"]["pairs_per_step"]) == (7, 32)


def test_shipped_suites_load() -> None:
    names = ["budget", "condition_position", "multi_axis", "normalization", "size_ablation", "table2_vcd", "table3_bqd"]
    assert sorted(shipped_suites()) == names
    assert all(set(load_suite(name).sizes) == {"tiny", "paper"} for name in names)
