"""The report of a training: notes and cautions."""

import json
import re
from pathlib import Path

import pytest

from pft_core.data.manifest import DatasetManifest
from pft_core.data.prepared import read_records
from pft_core.encoding import LayerPart, finish_layer
from pft_core.objectives import build_objective
from pft_core.policies.model_ref import ModelRef
from pft_core.prompts.rendering import PromptStyle
from pipelines.config import RunConfig
from pipelines.prepare import PrepareConfig
from pipelines.prepare import job as prepare
from pipelines.reporting.run_page import curve_names
from pipelines.reporting.run_report import write_report
from pipelines.train.nonfinite_rows import nonfinite_rows
from pipelines.train.resolved_run import ResolvedRun, RunLayers
from pipelines.train.training_summary import cautions_of, training_report
from tests.builders import SPACE, record, write_dataset

ROW = {"loss_first": 0.25, "loss_second": 0.5, "val_loss_first": 0.3, "val_loss_second": 0.4, "val_loss": 0.7}


def resolved(folder: Path, validated: range) -> ResolvedRun:
    data = write_dataset(folder / "data", [record(i) for i in range(8)])
    validation = write_dataset(folder / "validation", [record(i) for i in validated])
    config = RunConfig(name="mine", data=str(data), validation_data=str(validation), model="toyworld")
    objective = build_objective(config.train, axes=["Risk"], reports_displacement=False)
    manifests = [DatasetManifest.load(each) for each in (data, validation)]
    return ResolvedRun(config, *manifests, objective, None)  # type: ignore[arg-type]


def layer(folder: Path, rejected: int, with_control_tokens: int) -> str:
    folder.mkdir()
    old_part = LayerPart("part-00001.arrow", "", 1, 0)
    finish_layer(folder, [LayerPart("part-00000.arrow", "", 3, rejected, with_control_tokens), old_part], key="k")
    return str(folder)


def test_a_training_report_has_the_last_losses_and_the_next_command(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "mine 1"
    run_dir.mkdir(parents=True)
    rows = [{"step": 1, "loss_first": 9.0}, {"step": 2, **ROW}]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ref = ModelRef("toyworld", "adapter", None, PromptStyle(), SPACE, (0, 1), "t", "d", "c", "s")
    layers = RunLayers(layer(tmp_path / "a", 5, 2), layer(tmp_path / "b", 0, 0), PromptStyle())
    report = training_report(resolved(tmp_path, range(6, 10)), layers, ref, run_dir, seconds=1.0)
    assert report["notes"] == [
        "2 steps; the last losses: first pole 0.250, second pole 0.500, first, validation 0.300, "
        "second, validation 0.400.",
        "The data has 8 pairs from 8 rows, of which 0 were rejected.",
        "5 pairs were left out during encoding: 3 longer than encoding.max_length, 2 with control tokens.",
        f"Next: pft evaluate --model '{run_dir}' --data TEST_DATA --output '{run_dir}-evaluation'",
    ]
    (said,) = report["cautions"]
    assert said.startswith("2 of the 4 validation scenarios of mine are in its training data too")
    _, page = write_report(report, run_dir)
    assert "Read this first" in page.read_text()


def test_a_validation_on_new_scenarios_needs_no_warning(tmp_path: Path) -> None:
    assert cautions_of(resolved(tmp_path, range(8, 10))) == []


def test_the_summed_loss_is_not_drawn_beside_the_mean_of_each_pole() -> None:
    assert "val_loss" not in curve_names([{"step": 1, **ROW}])
    assert "val_loss" in curve_names([{"step": 1, "val_loss": 0.7}])


def lines_of(source: str) -> list[str]:
    if source == "json":
        pairs = [f"Pace,The town has plan {n}.,Fast,go {n},Slow,stay {n}" for n in range(12)]
        return ["axis,scenario,pole_a,answer_a,pole_b,answer_b", *pairs]
    pairs = [
        json.dumps({"prompt": f"The town has plan {n}.", "chosen": f"go {n}", "rejected": f"no {n}"}) for n in range(12)
    ]
    return ["{}", *pairs]


@pytest.mark.parametrize(("source", "name"), [("json", "mine.csv"), ("trl", "mine.jsonl")])
def test_rows_with_a_non_finite_loss_are_named_by_the_users_files(source: str, name: str, tmp_path: Path) -> None:
    rows = tmp_path / name
    header, first, *rest = lines_of(source)
    rows.write_text("\n".join([header, first, "faulty", *rest]))
    prepare.run(PrepareConfig(source=source, input=[str(rows)], output=str(tmp_path / "data"), split_by="scenario"))
    for folder in (tmp_path / "data", tmp_path / "data" / "train"):
        number, chosen = next((n, r) for n, r in enumerate(read_records(folder)) if r.scenario[-2] in "2345")
        said = nonfinite_rows(folder, DatasetManifest.load(folder), [f"{chosen.id}:one"])
        line = int(chosen.scenario[-2]) + 3
        prepared = f"{folder}/records/part-00000.parquet:row {number}"
        assert re.match(rf" \({rows}:{line}, prepared as {prepared}, '{chosen.scenario}'\): check these rows", said)
