"""A comparison end to end: tiny, on real Ray actors."""

import json
import re
from pathlib import Path

import pytest

from pft_core.data.preferences import load_space
from pft_core.data.prepared import read_records
from pft_core.data.sources.toyworld import generate
from pft_core.errors import UserError
from pft_core.evaluation.answers import AnswerSettings
from pft_core.evaluation.metrics.outcome import Outcome
from pft_core.evaluation.outcome_files import read_outcomes
from pft_core.evaluation.steering import SweepPoint
from pft_core.evaluation.yardsticks.registry import YARDSTICKS
from pft_core.policies.identity import base_digest
from pft_core.policies.model_ref import ModelRef
from pft_core.prompts.rendering import PromptStyle
from pft_core.toyworld.shipped import SHIPPED_BASE
from pipelines.compare import cell_pool, job, method_answerers
from pipelines.compare.methods import METHODS
from pipelines.compare.suite import Suite, load_suite, shipped_suites
from pipelines.compare.suite_data import held_out
from pipelines.evaluate.answering_job import AnsweringJob
from pipelines.validated_yaml import build
from tests.builders import record, write_dataset

pytestmark = pytest.mark.ray

RUN = {
    "prompt": {"answer": "option", "condition_position": "after"},
    "encoding": {"max_length": 256},
    "lora": {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"},
    "train": {
        "pairs_per_step": 8, "max_steps": 3, "lr": 1e-2, "warmup_steps": 0, "precision": "fp32", "checkpoint_every": 0,
    },
}  # fmt: skip


def suite(methods: list[str], *, of_method=None, run=RUN, seeds=(0, 1), **changes) -> Suite:
    size = {"data": "toyworld", "base": "toyworld", "seeds": list(seeds), "test_per_axis": 8, "run": run}
    raw = {"name": "small", "title": "small", "methods": methods, "reference": methods[-1], **changes}
    return build(Suite, {**raw, "sizes": {"tiny": {**size, "of_method": of_method or {}}}}, source=lambda _: "")


def report(result) -> dict:
    return json.loads(Path(result["report_json"]).read_text())


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compare")


def test_all_methods_end_in_one_report_and_are_not_run_again(ray_cluster, storage, monkeypatch) -> None:
    methods = [*YARDSTICKS, *METHODS]
    chosen = suite(methods, seeds=[0])
    result = job.run(chosen, size="tiny", storage=storage)
    first = report(result)
    assert result["failed"] == 0
    assert {row["method"] for row in first["rows"]} == set(methods)
    assert {row["n_items"] for row in first["rows"] if row["axis"] is None} == {24}
    runs = {(run["method"], run["seed"]): run for run in first["runs"]}
    assert all(run["run_id"] and run["data_digest"] and run["test_digest"] for run in runs.values())
    assert {run_id for row in first["rows"] + first["tests"] for run_id in row["run_ids"]} == {
        run["run_id"] for run in runs.values()
    }
    # A control token is worded differently from a description.
    assert runs["controllable_po", 0]["template_digest"] != runs["pft", 0]["template_digest"]

    cells = storage / "compare" / "cells"
    second_stage = cells / runs["controllable_po", 0]["run_id"]
    # Stage 2 trains and answers from the model of stage 1.
    assert ModelRef.load(second_stage).base == str(second_stage / "stage1" / "merged")
    assert base_digest(str(second_stage / "stage1" / "merged")) != runs["pft", 0]["base_digest"]
    # Its leak is compared with the base before any stage, as for the other methods.
    by_base = [
        [o.base_unconditioned for o in outcomes(cells / runs[m, 0]["run_id"])] for m in ("controllable_po", "pft")
    ]
    assert by_base[0] == by_base[1]

    monkeypatch.setattr(cell_pool, "CellActor", NoActor)
    again = report(job.run(chosen, size="tiny", storage=storage))
    assert again["rows"] == first["rows"]
    assert json.loads((cells / runs["pft", 0]["run_id"] / "job.json").read_text())["attempt"] == 1


class NoActor:
    def run(self, cell) -> None:
        raise AssertionError(f"{cell.name} is finished and was run again")


def outcomes(run_dir: Path) -> list[Outcome]:
    return read_outcomes(run_dir / "outcomes.jsonl")


def test_steering_chooses_its_setting_on_validation_records(tmp_path, monkeypatch) -> None:
    folders = {
        split: write_dataset(tmp_path / split, list(generate(seed=1, split=split, num_per_axis=2)))
        for split in ("train", "validation")
    }
    swept = []
    monkeypatch.setattr(
        method_answerers, "sweep", lambda records, **_: swept.extend(records) or (SweepPoint(0, 1.0, 1.0), [])
    )
    style, space = PromptStyle("after", "option"), load_space("toyworld")
    ref = ModelRef(str(SHIPPED_BASE), None, None, style, space, (), "", "", "", None)
    how = AnsweringJob(
        ref, AnswerSettings(style, space, 256, 4096, 1), generate=False, precision="fp32", use_gpu=False, num_threads=1
    )
    method_answerers.steering_answerers(how, train=folders["train"], validation=folders["validation"], run_dir=tmp_path)
    assert [r.id for r in swept] == [r.id for r in read_records(folders["validation"])]


def test_a_part_of_the_training_records_is_held_out_by_scenario(tmp_path) -> None:
    data = write_dataset(tmp_path / "data", [*(record(n) for n in range(200)), *(record(n) for n in range(200))])
    train, validation = held_out(data, tmp_path)
    kept, out = list(read_records(train)), list(read_records(validation))
    assert len(kept) + len(out) == 400
    assert 20 <= len(out) <= 60  # about 40, two per scenario
    assert not {r.scenario for r in kept} & {r.scenario for r in out}


def test_what_is_too_long_is_said(ray_cluster, storage) -> None:
    chosen = suite(["position", "prompt_only"], run={**RUN, "encoding": {"max_length": 62}})
    found = report(job.run(chosen, size="tiny", storage=storage))
    (note,) = [caption for caption in found["captions"] if "too long" in caption]
    assert re.fullmatch(r"\d+ of 24 questions are too long and not counted in any number: prompt_only skipped .*", note)
    (run,) = [run for run in found["runs"] if run["method"] == "prompt_only"]
    assert note.startswith(f"{run['items_rejected']} of 24 ")


def test_a_seed_that_fails_is_shown_and_the_others_count(ray_cluster, storage) -> None:
    chosen = suite(["sft:first", "pft"], of_method={"sft:first": {"train.tokens_per_microbatch": 8}})
    found = report(job.run(chosen, size="tiny", storage=storage))
    failed = [run for run in found["runs"] if run["status"] == "failed"]
    assert [(run["method"], run["seed"]) for run in failed] == [("sft:first", 0), ("sft:first", 1)]
    assert "tokens_per_microbatch=8 is smaller than a pair" in failed[0]["error"]
    assert {row["method"] for row in found["rows"]} == {"pft"}


def test_variants_cut_data_and_axes(ray_cluster, storage) -> None:
    variants = [{"value": 24, "train_size": 24}, {"value": "Risk", "axes": ["Risk"]}]
    found = report(job.run(suite(["pft"], seeds=[0], varies="cut", variants=variants), size="tiny", storage=storage))
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
        ({"methods": ["pft", "pft"]}, "method 'pft' is named twice"),
        ({"seeds": [1, 1]}, "seed 1 is named twice"),
        ({"seeds": [-1]}, "greater than or equal to 0"),
        ({"varies": "x", "variants": [{"value": 1}, {"value": 1.0}]}, "variant 1.0 is named twice"),
        ({"of_method": {"sft:frist": {}}}, "method 'sft:frist' does not exist"),
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


@pytest.mark.parametrize(
    "key", ["template_digest", *(pytest.param(key, marks=pytest.mark.slow) for key in ("data_digest", "test_digest"))]
)
def test_results_that_stand_on_other_data_or_wording_are_refused(ray_cluster, storage, key) -> None:
    chosen = suite(["pft"])
    first = report(job.run(chosen, size="tiny", storage=storage))["runs"][0]
    kept = storage / "compare" / "cells" / first["run_id"] / "job.json"
    found = json.loads(kept.read_text())
    kept.write_text(json.dumps(found | {"result": found["result"] | {key: "0123"}}))
    with pytest.raises(UserError, match=f"{key} differs between rows: .*0123"):
        job.run(chosen, size="tiny", storage=storage)
    kept.write_text(json.dumps(found))


def test_a_suites_file_says_only_where_it_differs(tmp_path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("name: own\ntitle: own\nmethods: [pft]\nsizes: {tiny: {run: {train: {max_steps: 7}}}}\n")
    size = load_suite(str(path), ["sizes.tiny.seeds=[4]"]).sizes["tiny"]
    assert (size.data, size.seeds) == ("toyworld", [4])
    assert (size.run["train"]["max_steps"], size.run["train"]["pairs_per_step"]) == (7, 32)


def test_without_released_data_a_tiny_suite_is_on_the_embedded_data_with_its_settings(monkeypatch) -> None:
    monkeypatch.delenv("PFT_DATA", raising=False)
    suite = load_suite("table2_vcd", ["sizes.tiny.run.train.max_steps=3"])
    size = suite.sizes["tiny"]
    assert (size.data, size.base, size.run["train"]["max_steps"], size.run["lora"]["r"]) == (
        "toyworld",
        "toyworld",
        3,
        8,
    )
    assert size.notes[-1] == "Data: the embedded toyworld instead of vcd, because PFT_DATA is not set."
    with pytest.raises(UserError, match=r"holds no vcd/train\.json"):
        job.run(suite, size="paper")


def test_released_data_that_is_not_where_it_is_said_to_be_is_refused(ray_cluster, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PFT_DATA", str(tmp_path))
    with pytest.raises(UserError, match=f"PFT_DATA={tmp_path} holds no bqd"):
        job.run(load_suite("table3_bqd"), size="tiny", storage=tmp_path)


def test_shipped_suites_load() -> None:
    names = ["budget", "condition_position", "multi_axis", "normalization", "size_ablation", "table2_vcd", "table3_bqd"]
    assert sorted(shipped_suites()) == names
    assert all(set(load_suite(name).sizes) == {"tiny", "paper"} for name in names)
