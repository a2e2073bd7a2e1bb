import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pft_core.data.manifest import DatasetManifest, Shard
from pft_core.data.preferences import Axis, Pole, PreferenceSpace, worded_as
from pft_core.data.record_schema import RECORD_SCHEMA
from pft_core.data.scenarios import scenarios_of, write_trained_scenarios
from pft_core.errors import UserError
from pft_core.evaluation.answers import ask
from pft_core.evaluation.metrics.metric import Metric
from pft_core.evaluation.metrics.metric_rows import report_rows
from pft_core.evaluation.metrics.outcome import Outcome
from pft_core.evaluation.metrics.registry import METRICS
from pft_core.files import file_sha256, read_json
from pft_core.policies import gguf
from pft_core.policies.model import add_lora, load_base, save_adapter
from pft_core.policies.model_ref import ModelRef, adapter_digests
from pft_core.policies.settings import LoraSettings
from pft_core.prompts.rendering import PromptStyle
from pipelines.evaluate import evaluation_request
from pipelines.evaluate import job as evaluate
from pipelines.evaluate.answering_actors import PolicyActor, items_table
from pipelines.evaluate.evaluate_config import refuse_missing_inputs, refuse_other_output
from pipelines.evaluate.evaluation_request import (
    EvaluateConfig,
    make_job,
    policy_name,
    read_items,
    resolve_policy,
    trained_poles,
)
from pipelines.evaluate.pool import read_answers
from pipelines.evaluate.report_examples import examples
from tests.builders import SPACE, record, write_dataset
from tests.gguf_files import write_gguf

NUM_RECORDS = 70  # more than one group of items


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A prepared folder in two shards, with 35 records of each axis."""
    folder = tmp_path_factory.mktemp("data")
    records = [record(i, axis=SPACE.axes[i % 2].name, num_options=2 + i % 4) for i in range(NUM_RECORDS)]
    shards = []
    for number, part in enumerate((records[:40], records[40:])):
        path = folder / f"shard-{number}.parquet"
        pq.write_table(pa.Table.from_pylist([r.to_row() for r in part], schema=RECORD_SCHEMA), path)
        shards.append(Shard(path.name, file_sha256(path), len(part)))
    counts = {"rows_in": NUM_RECORDS, "rows_out": NUM_RECORDS, "pairs_out": NUM_RECORDS, "rejected": 0}
    DatasetManifest(
        source="json", forms=("one",), space=SPACE, shards=tuple(shards), **counts, rejected_by_reason={},
        length_quantiles={}, config_digest="c", data_digest="d",
    ).save(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_qwen2, tmp_path_factory) -> Path:
    """A LoRA adapter strong enough to change choices."""
    base = load_base(str(tiny_qwen2), precision="fp32", gradient_checkpointing=False, device=torch.device("cpu"))
    model = add_lora(base, LoraSettings(r=4, alpha=64, dropout=0.0, target_modules="all-linear"), seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(generator=generator)
    folder = tmp_path_factory.mktemp("run") / "adapter"
    save_adapter(model, {n: p.data for n, p in model.named_parameters() if p.requires_grad}, folder)
    return folder


@pytest.fixture(scope="module")
def model_ref(tiny_qwen2, adapter) -> Path:
    ref = ModelRef(
        base=str(tiny_qwen2), adapter="adapter", weights=None, style=PromptStyle(answer="option"), space=SPACE,
        trained_sides=(0, 1), template_digest="t", data_digest="d", config_digest="c",
        adapter_sha256=file_sha256(adapter / "adapter_model.safetensors"),
    )  # fmt: skip
    return ref.save(adapter.parent).parent


def config(model, data, output, **options) -> EvaluateConfig:
    return EvaluateConfig(model=str(model), data=str(data), output=str(output), use_gpu=False, **options)


def report_of(settings: EvaluateConfig) -> dict:
    return read_json(Path(evaluate.run(settings)["report_json"]), what="a report")


def without_ray(settings: EvaluateConfig) -> list[dict]:
    """Return the rows of the same evaluation, asked in this process in one call."""
    manifest = DatasetManifest.load(Path(settings.data))
    ref = resolve_policy(settings, manifest)
    job = make_job(settings, ref)
    items = read_items(Path(settings.data), manifest, forms=settings.forms, limit_per_axis=settings.limit_per_axis)
    outcomes = ask(items, *PolicyActor(job).policy_and_base())
    return report_rows(outcomes, policy=settings.policy, space=ref.space, trained_poles=trained_poles(settings))


@pytest.mark.ray
def test_two_workers_give_the_rows_of_a_plain_run(ray_cluster, model_ref, data, tmp_path) -> None:
    settings = config(model_ref, data, tmp_path, policy="p", num_workers=2)
    report = report_of(settings)
    assert report["items"] == {"in": 70, "out": 70, "rejected": 0, "rejected_by_reason": {}}
    assert report["rows"] == json.loads(json.dumps(without_ray(settings)))
    assert {row["n"] for row in report["rows"]} == {35}
    assert {row["axis"] for row in report["rows"]} == {"Risk", "Pace"}
    leaks = {row["axis"]: row["value"] for row in report["rows"] if row["metric"] == "leak"}
    assert max(leaks.values()) > 0  # the adapter changes what is chosen without a condition
    assert report["digests"]["adapter_sha256"] == file_sha256(model_ref / "adapter" / "adapter_model.safetensors")
    assert report["digests"]["data"] == "d"


@pytest.mark.ray
def test_too_many_workers_are_refused_before_waiting(ray_cluster, tiny_qwen2, data, tmp_path) -> None:
    with pytest.raises(UserError, match="num_workers=1000 needs 1000 CPU"):
        evaluate.run(config(tiny_qwen2, data, tmp_path, num_workers=1000))


@pytest.fixture
def in_process(monkeypatch) -> None:
    """Ask in this process, in one group, instead of on Ray."""

    def ask_here(requests, *, num_workers, kept):
        return [read_answers(PolicyActor(job)(items_table(items)).to_pylist()) for items, job in requests]

    monkeypatch.setattr(evaluate, "ensure_ray", lambda: None)
    monkeypatch.setattr(evaluate, "ask_all_on_ray", ask_here)


def test_rejected_items_are_counted_and_a_base_model_does_not_leak(in_process, tiny_qwen2, data, tmp_path) -> None:
    settings = config(tiny_qwen2, data, tmp_path, policy="p", forms=["one", "all"], limit_per_axis=4, max_length=150)
    report = report_of(settings)
    items = report["items"]
    assert items["in"] == 2 * 4 * 2
    assert items["in"] == items["out"] + items["rejected"]
    assert 0 < items["rejected"] == items["rejected_by_reason"]["overlong"]
    outcomes = [Outcome.from_json(line) for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    space = DatasetManifest.load(data).space
    rows = report_rows(outcomes, policy="p", space=space, trained_poles=None)
    assert report["rows"] == json.loads(json.dumps(rows))  # every figure can be computed from the stored outcomes
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [r["reason"] for r in rejects] == ["overlong"] * items["rejected"]
    assert {row["value"] for row in report["rows"] if row["metric"] == "leak"} == {0}
    assert {row["trained_pole"] for row in report["rows"]} == {None}


def test_generated_noise_is_unparsed_not_right(in_process, model_ref, data, tmp_path) -> None:
    settings = config(model_ref, data, tmp_path, scoring="generate", max_new_tokens=4, limit_per_axis=2)
    rows = report_of(settings)["rows"]
    assert {row["unparsed"] for row in rows} == {1}
    assert {row["value"] for row in rows} == {0}
    assert {row["policy"] for row in rows} == {model_ref.name}


def test_a_users_mistake_on_a_worker_is_one_clear_message(in_process, tiny_qwen2, adapter, data, tmp_path) -> None:
    (broken := tmp_path / "adapter").mkdir()
    (broken / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        evaluate.run(config(tiny_qwen2, data, tmp_path / "out", adapter=str(broken), limit_per_axis=1))
    assert not (tmp_path / "out").exists()


def test_nothing_left_to_evaluate_is_an_error(in_process, tiny_qwen2, data, tmp_path) -> None:
    with pytest.raises(UserError, match=r"every item was rejected \{'overlong': 2\}"):
        evaluate.run(config(tiny_qwen2, data, tmp_path, max_length=10, limit_per_axis=1))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def failing_metric(monkeypatch) -> None:
    monkeypatch.setattr(METRICS, "_entries", {name: METRICS[name] for name in METRICS})
    METRICS.add("broken", Metric("Broken", "broken", "pair", lambda outcome: 1 / 0))


def test_a_metric_that_fails_loses_no_answer(in_process, failing_metric, tiny_qwen2, data, tmp_path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    folders[0].mkdir()
    (folders[0] / "report.json").write_text("of earlier answers")
    requests = [config(tiny_qwen2, data, folder, policy=folder.name, limit_per_axis=2) for folder in folders]
    message = r"policy a: metric 'broken', item .*ZeroDivisionError.*outcomes are kept in .*/a/outcomes\.jsonl"
    with pytest.raises(UserError, match=message):
        evaluate.run_all(requests)
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {"outcomes.jsonl", "rejects.jsonl"}
        assert len([Outcome.from_json(line) for line in (folder / "outcomes.jsonl").read_text().splitlines()]) == 4


def test_a_fully_trained_policy_is_compared_with_its_base(in_process, tiny_qwen2, data, tmp_path) -> None:
    # Other weights of the same shape: their choices without a condition are compared with the base's.
    weights = AutoModelForCausalLM.from_pretrained(tiny_qwen2)
    torch.manual_seed(1)
    for weight in weights.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    weights.save_pretrained(tmp_path / "weights")
    AutoTokenizer.from_pretrained(tiny_qwen2).save_pretrained(tmp_path / "weights")
    ModelRef(
        base=str(tiny_qwen2), adapter=None, weights="weights", style=PromptStyle(answer="option"), space=SPACE,
        trained_sides=(0, 1), template_digest="t", data_digest="d", config_digest="c", adapter_sha256=None,
    ).save(tmp_path)  # fmt: skip
    rows = report_of(config(tmp_path, data, tmp_path / "out"))["rows"]
    shares = [free_shares(model, data) for model in (tmp_path / "weights", tiny_qwen2)]
    leaks = {row["axis"]: row["value"] for row in rows if row["metric"] == "leak"}
    assert leaks == {axis: pytest.approx(abs(shares[0][axis] - shares[1][axis])) for axis in ("Risk", "Pace")}
    assert max(leaks.values()) > 0


def free_shares(model: Path, data: Path) -> dict[str, float]:
    """Return, per axis, how often this model chooses the first pole without a condition."""
    settings = config(model, data, "unused", prompt={"answer": "option"})
    manifest = DatasetManifest.load(data)
    actor = PolicyActor(make_job(settings, resolve_policy(settings, manifest)))
    items = read_items(data, manifest, forms=None, limit_per_axis=None)
    outcomes, _ = read_answers(actor(items_table(items)).to_pylist())
    by_axis = {axis.name: [o for o in outcomes if o.axis == axis.name] for axis in SPACE.axes}
    return {axis: sum(o.shows_only(o.unconditioned, 0) for o in group) / len(group) for axis, group in by_axis.items()}


def test_a_limit_is_per_axis_and_every_form_asks_the_same_records(data) -> None:
    items = read_items(data, DatasetManifest.load(data), forms=["one", "all"], limit_per_axis=3)
    for form in ("one", "all"):
        assert sorted(r.axis for r, f in items if f == form) == ["Pace"] * 3 + ["Risk"] * 3
    assert [r.id for r, f in items if f == "one"] == [r.id for r, f in items if f == "all"]
    assert len(read_items(data, DatasetManifest.load(data), forms=None, limit_per_axis=None)) == NUM_RECORDS


def test_a_missing_shard_is_named(data) -> None:
    manifest = DatasetManifest.load(data)
    with pytest.raises(UserError, match=r"shard-0\.parquet: no such file"):
        read_items(data / "elsewhere", manifest, forms=None, limit_per_axis=None)


def test_a_reference_is_asked_in_its_own_style_unless_told_otherwise(model_ref, tiny_qwen2, data, tmp_path) -> None:
    manifest = DatasetManifest.load(data)
    own = resolve_policy(config(model_ref, data, tmp_path), manifest)
    assert own.style.answer == "option"
    assert resolve_policy(config(model_ref, data, tmp_path, scoring="generate"), manifest).style == own.style
    letters = resolve_policy(config(model_ref / "model_ref.json", data, tmp_path, scoring="letter"), manifest)
    assert letters.style.answer == "letter"
    assert letters.template_digest != own.template_digest
    plain = resolve_policy(config(tiny_qwen2, data, tmp_path), manifest)
    assert (plain.style.answer, plain.adapter, plain.adapter_sha256) == ("letter", None, None)
    with_adapter = resolve_policy(config(tiny_qwen2, data, tmp_path, adapter=own.adapter), manifest)
    assert with_adapter.adapter_sha256 == own.adapter_sha256


def test_a_gguf_file_is_a_model_and_no_reference(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gguf, "CACHE", tmp_path / "cache")
    blob = write_gguf(tmp_path / "0123abcd")
    (tmp_path / "m.gguf").symlink_to(blob)  # as in the cache of the Hugging Face Hub
    settings = config(tmp_path / "m.gguf", data, tmp_path / "report")
    refuse_missing_inputs(settings)
    assert policy_name(settings) == "m.gguf"
    assert resolve_policy(settings, DatasetManifest.load(data)).base == str(tmp_path / "m.gguf")


def test_a_missing_adapter_is_named(tiny_qwen2, data, tmp_path) -> None:
    with pytest.raises(UserError, match="no such file; an adapter is a folder"):
        resolve_policy(config(tiny_qwen2, data, tmp_path, adapter=str(tmp_path / "none")), DatasetManifest.load(data))


def test_a_policy_hears_the_words_it_was_trained_with() -> None:
    trained = PreferenceSpace("trained", (Axis("Pace", Pole("Fast", "In other words."), Pole("Slow")),))
    space = worded_as(trained, SPACE)
    assert [axis.name for axis in space.axes] == ["Risk", "Pace"]
    assert space.axis("Pace").first.description == "In other words."
    assert space.axis("Risk") == SPACE.axis("Risk")


def test_poles_that_mean_something_else_are_refused() -> None:
    swapped = PreferenceSpace("trained", (Axis("Pace", Pole("Slow"), Pole("Fast")),))
    with pytest.raises(UserError, match=r"axis 'Pace' has the poles \['Fast', 'Slow'\] in the data"):
        worded_as(swapped, SPACE)


def test_an_output_of_another_kind_is_never_written_to(in_process, tiny_qwen2, model_ref, data, tmp_path) -> None:
    run = shutil.copytree(model_ref, tmp_path / "run")
    (run / "report.json").write_text("{}")
    for folder in (run, data):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for fresh in (False, True):
            with pytest.raises(UserError, match="holds files that no evaluation wrote: choose another folder"):
                evaluate.run(config(tiny_qwen2, data, folder), fresh=fresh)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_an_evaluation_of_something_else_is_replaced_only_when_told(in_process, tiny_qwen2, data, tmp_path) -> None:
    first = report_of(config(tiny_qwen2, data, tmp_path, limit_per_axis=2))
    again = report_of(config(tiny_qwen2, data, tmp_path, limit_per_axis=2, num_workers=2))
    assert again["rows"] == first["rows"]
    with pytest.raises(UserError, match="the folder holds an evaluation with another limit_per_axis"):
        evaluate.run(config(tiny_qwen2, data, tmp_path, limit_per_axis=3))
    with pytest.raises(UserError, match="the folder holds an evaluation with another seed"):
        evaluate.run(config(tiny_qwen2, data, tmp_path, limit_per_axis=2, seed=1))
    with pytest.raises(UserError, match="the folder holds an evaluation in another precision"):
        evaluate.run(config(tiny_qwen2, data, tmp_path, limit_per_axis=2, precision="bf16"))
    evaluate.run(config(tiny_qwen2, data, tmp_path, limit_per_axis=3), fresh=True)
    assert len((tmp_path / "outcomes.jsonl").read_text().splitlines()) == 6


def test_what_differs_from_the_evaluation_in_the_folder_is_said_for_each_key(tmp_path: Path) -> None:
    first = config(tmp_path / "m", tmp_path / "data", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "outcomes.jsonl").write_text("")
    (tmp_path / "out" / "report.json").write_text(json.dumps({"config": first.model_dump(mode="json")}))
    refuse_other_output(first)
    for changes, says in (
        ({"data": str(tmp_path / "more")}, "an evaluation of other data: choose"),
        ({"model": "n", "limit_per_axis": 3}, "an evaluation of another model, with another limit_per_axis: choose"),
    ):
        with pytest.raises(UserError, match=says):
            refuse_other_output(first.model_copy(update=changes))


@pytest.mark.parametrize("precision", [None, "fp32"])
def test_a_report_names_the_precision_that_ran_and_the_draw(
    in_process, monkeypatch, tiny_qwen2, data, tmp_path, precision
) -> None:
    monkeypatch.setattr(evaluation_request, "has_gpus", lambda: False)
    asked = config(tiny_qwen2, data, tmp_path, limit_per_axis=2, seed=5, precision=precision)
    report = report_of(asked.model_copy(update={"use_gpu": None}))
    assert (report["config"]["precision"], report["config"]["seed"]) == ("fp32", 5)
    page = (tmp_path / "report.html").read_text()
    assert "The model ran in fp32." in page
    assert "2 records of each axis were drawn with seed 5." in page
    evaluate.run(asked)  # null and the precision that it stands for are one request


def test_on_gpus_the_precision_that_null_stands_for_is_bf16(monkeypatch, tiny_qwen2, data, tmp_path) -> None:
    monkeypatch.setattr(evaluation_request, "has_gpus", lambda: True)
    asked = config(tiny_qwen2, data, tmp_path).model_copy(update={"use_gpu": None})
    assert evaluation_request.with_precision(asked).precision == "bf16"
    report = {"config": asked.model_copy(update={"precision": "fp32"}).model_dump(mode="json")}
    (tmp_path / "outcomes.jsonl").write_text("")
    (tmp_path / "report.json").write_text(json.dumps(report))
    refuse_other_output(asked)  # not known before Ray runs
    with pytest.raises(UserError, match="in another precision"):
        evaluate.settled(asked, fresh=False)


def test_a_seed_without_a_draw_is_refused(tiny_qwen2, data, tmp_path) -> None:
    with pytest.raises(ValueError, match="seed=1 has no effect without limit_per_axis: leave it out"):
        config(tiny_qwen2, data, tmp_path, seed=1)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_that_is_not_its_references_is_refused(in_process, model_ref, data, tmp_path, name) -> None:
    run = shutil.copytree(model_ref, tmp_path / "run")
    ref = replace(ModelRef.load(run), adapter="adapter", **adapter_digests(run / "adapter"))
    ref.save(run)
    file = run / "adapter" / name
    if name == "adapter_config.json":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 160}))
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match=rf"run/adapter: not the adapter that its model_ref\.json describes.*{name}"):
        evaluate.run(config(run, data, tmp_path / "out", limit_per_axis=2))
    replace(ref, adapter_sha256=None, adapter_config_sha256=None).save(run)  # as in references of older versions
    digests = report_of(config(run, data, tmp_path / "out", limit_per_axis=2))["digests"]
    assert digests["adapter_sha256"]
    assert digests["adapter_config_sha256"]


@pytest.mark.parametrize("described", [True, False])
def test_an_adapter_beside_a_run_brings_its_own_training(
    in_process, tiny_qwen2, model_ref, adapter, data, tmp_path, described
) -> None:
    other = shutil.copytree(adapter, tmp_path / "other" / "adapter")
    if described:
        ref = replace(ModelRef.load(model_ref), adapter="adapter", trained_sides=(1,), data_digest="theirs")
        ref.save(other.parent)
    report = report_of(config(model_ref, data, tmp_path / "out", adapter=str(other), limit_per_axis=2))
    assert report["digests"]["training_data"] == ("theirs" if described else None)
    trained = {row["pole"]: row["trained_pole"] for row in report["rows"] if row["metric"] == "one"}
    assert trained == {p.name: bool(side) if described else None for a in SPACE.axes for side, p in enumerate(a.poles)}
    caution, few = report["cautions"]
    assert few.startswith("Risk: 2 scenarios; Pace: 2 scenarios: fewer than 30 are too few for an interval")
    assert f"the adapter {other}" in caution
    assert ("unknown" in caution) != described


@pytest.mark.parametrize("kept", ["scenarios", "digest"])
def test_what_was_trained_on_is_said_of_a_test_on_it(in_process, model_ref, data, tmp_path, capfd, kept) -> None:
    run = shutil.copytree(model_ref, tmp_path / "run")
    if kept == "scenarios":
        seen = [record(i, axis=SPACE.axes[i % 2].name, num_options=2 + i % 4) for i in range(68, 90)]
        cased = [replace(r, scenario=f" {r.scenario.upper()}") for r in seen]
        folder = write_dataset(tmp_path / "seen", cased)
        write_trained_scenarios(run, scenarios_of(folder, DatasetManifest.load(folder)))
    report_html = Path(evaluate.run(config(run, data, tmp_path / "out", limit_per_axis=2))["report_json"]).with_suffix(
        ".html"
    )
    caution = f"run was trained on {2 if kept == 'scenarios' else 70} of the 70 scenarios that it is tested on"
    assert caution in report_html.read_text()
    assert caution in capfd.readouterr().err


def test_examples_show_how_likely_each_option_was_under_each_pole(in_process, model_ref, data, tmp_path) -> None:
    report = report_of(config(model_ref, data, tmp_path, limit_per_axis=6))
    page = (tmp_path / "report.html").read_text()
    for example in report["examples"]:
        for pole, chosen in example["chosen"].items():
            shares = [option["probabilities"][pole] for option in example["options"]]
            assert sum(shares) == pytest.approx(1, abs=0.001)
            assert example["options"][shares.index(max(shares))]["text"] == chosen
            assert f"{100 * shares[0]:.1f}% under {pole}" in page


def test_outcomes_of_older_code_are_examples_without_probabilities() -> None:
    older = Outcome(
        "i", "s", "Risk", "one", (0, 1), (frozenset({0}), frozenset({1})), None, None, "Go?", ("go", "stay")
    )
    stored = json.loads(older.to_json())
    del stored["probabilities"]
    (example,) = examples([Outcome.from_json(json.dumps(stored))], SPACE)
    assert [option["probabilities"] for option in example["options"]] == [{}, {}]


def test_axes_that_were_never_trained_are_named(in_process, model_ref, data, tmp_path) -> None:
    run = shutil.copytree(model_ref, tmp_path / "run")
    ref = ModelRef.load(run)
    replace(ref, adapter="adapter", space=ref.space.restricted_to(["Risk"]), data_digest="other").save(run)
    report = report_of(config(run, data, tmp_path / "out", limit_per_axis=2))
    assert report["cautions"][0] == "run was never trained on Pace."
    assert {row["trained_pole"] for row in report["rows"] if row["axis"] == "Pace"} == {False, None}


def test_a_report_shows_items_and_outcomes_hold_their_texts(in_process, model_ref, data, tmp_path) -> None:
    report = report_of(config(model_ref, data, tmp_path, limit_per_axis=6))
    assert {example["axis"] for example in report["examples"]} == {"Risk", "Pace"}
    assert all(example["scenario"] in (tmp_path / "report.html").read_text() for example in report["examples"])
    lines = [json.loads(line) for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    assert all(line["scenario_text"].startswith("The town") and line["options"] for line in lines)
    old = {key: value for key, value in lines[0].items() if key not in ("scenario_text", "options")}
    assert Outcome.from_json(json.dumps(old)).options == ()
