"""A model card says what a policy is, gives its exact prompts, and holds programs that run as printed."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pft_core.data.records import Option
from pft_core.encoding.tokens import tokenize_prompts
from pft_core.errors import UserError
from pft_core.evaluation.answers import generate
from pft_core.files import digest, write_json, write_text
from pft_core.policies.model import load_policy
from pft_core.policies.model_ref import ModelRef
from pft_core.policies.pretrained import load_tokenizer, public_name
from pft_core.policies.shipped_base import SHIPPED_BASE
from pft_core.prompts.rendering import render_prompt
from pipelines.export import job
from pipelines.export.base_facts import base_facts
from pipelines.export.card_sentences import bring_the_base
from pipelines.export.export_config import ExportConfig
from pipelines.export.prompts import OPTIONS, SCENARIO, tokenized_as
from tests.builders import record, write_dataset
from tests.pipelines.export.test_export import run_alone
from tests.serving import CPU, write_policy


def exported(run: Path, to: Path, **options: Any) -> str:
    """Export a run; return its card."""
    job.run(ExportConfig(run, to, **options))
    return (to / "README.md").read_text(encoding="utf-8")


def programs(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def row(policy: str, **values: Any) -> dict[str, Any]:
    found = {"axis": "Risk", "pole": "Bold", "trained_pole": True, "metric": "one", "value": 0.75, "n": 40}
    return {"policy": policy, **found, "low": 0.6, "high": 0.9, "position_baseline": 0.5, "unparsed": 0.0, **values}


def report_of(ref: ModelRef, **changes: Any) -> dict[str, Any]:
    """Return the report of an evaluation of a policy, as far as a card reads it."""
    digests = {"adapter_sha256": ref.adapter_sha256, "model": "m", "data": "1234abcd", "training_data": "data"}
    options = [{"text": "Jump.", "pole": "Bold"}, {"text": "Wait.", "pole": "Careful"}]
    example = {"kind": "right", "axis": "Risk", "scenario": "A wall.", "options": options}
    return {
        "rows": [row("run"), row("run", metric="both_right", pole=None, value=0.5)],
        "digests": digests,
        "cautions": ["run is the adapter /home/me/secret/adapter (--adapter) on the base of ./models/base."],
        "examples": [example | {"chosen": {"Bold": "Jump.", "Careful": "Wait."}}],
        **changes,
    }


def test_the_prompts_of_a_card_are_those_of_the_training(styled_run: Path, tmp_path: Path) -> None:
    card, ref = exported(styled_run, tmp_path / "out"), ModelRef.load(styled_run)
    names: dict[str, Any] = {}
    exec(programs(card)[0].split("tokenizer =")[0], names)
    item = replace(record(), scenario=SCENARIO, options=tuple(Option(text, side) for side, text in enumerate(OPTIONS)))
    prompts = [render_prompt(item, side=side, form="one", style=ref.style, space=ref.space).text for side in (0, 1)]
    assert names["PROMPTS"] == dict(zip(("Bold", "Careful"), prompts, strict=True))
    assert all(f"```text\n{prompt}\n```" in card for prompt in prompts)
    assert "| Pace | Slow | Preference (Pace): Slow. Waits. |" in card


def test_the_transformers_program_of_a_card_runs_as_printed_and_answers_as_the_policy(
    lora_run: Path,
    tiny_qwen2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = programs(exported(lora_run, tmp_path / "out"))[0]
    shutil.copytree(tiny_qwen2, tmp_path / tiny_qwen2.name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(program, names)
    ref, tokenizer = ModelRef.load(lora_run), load_tokenizer(str(tiny_qwen2))
    model = load_policy(ref.base, ref.adapter, None, precision="fp32", device=CPU)
    prompts = tokenize_prompts(list(names["PROMPTS"].values()), tokenizer)
    replies = [generate([ids], model=model, tokenizer=tokenizer, max_new_tokens=64)[0] for ids in prompts]
    wanted = "".join(f"{pole}: {reply}\n" for pole, reply in zip(("Bold", "Careful"), replies, strict=True))
    assert capsys.readouterr().out.endswith(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_a_cards_programs_run_alone(tmp_path: Path, engine: str, merge: bool) -> None:
    pytest.importorskip(engine)
    run = write_policy(tmp_path / "run", SHIPPED_BASE, seed=1)
    card = exported(run, tmp_path / "out", merge=merge)
    if not merge:
        run_alone(re.findall(r'`python -c "(.*?)"`', card)[0], tmp_path)  # copies the base beside the adapter
    printed = run_alone(programs(card)[("transformers", "vllm").index(engine)], tmp_path)
    assert [line for line in ("Bold: ", "Careful: ") if line not in printed] == []


def test_the_front_matter_of_a_card_is_what_the_hub_reads(lora_run: Path, tiny_qwen2: Path, tmp_path: Path) -> None:
    for merge, library, relation in ((False, "peft", "adapter"), (True, "transformers", "finetune")):
        front = yaml.safe_load(exported(lora_run, tmp_path / library, merge=merge).split("---\n")[1])
        assert (front["library_name"], front["base_model_relation"]) == (library, relation)
        assert front["base_model"] == tiny_qwen2.name
        assert (front["pipeline_tag"], front["license"]) == ("text-generation", "unknown")
        assert front["pft"]["training_data_digest"] == "data"
        assert front["pft"]["base_digest"] == ModelRef.load(lora_run).base_digest


def test_a_card_shows_the_evaluation_beside_the_run_and_no_path_of_it(lora_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(lora_run, tmp_path / "run")
    write_json_at(tmp_path / "run-evaluation", report_of(ModelRef.load(run)))
    card = exported(run, tmp_path / "out")
    assert "| One | Risk | Bold | 40 | 0.75 (0.60 to 0.90) | 0.50 |" in card
    assert "| Both right | Risk | both | 40 | 0.50 (0.60 to 0.90) | 0.50 |" in card
    assert "`1234abcd`" in card
    assert "run is the adapter adapter (--adapter) on the base of base." in card
    assert "A wall." in card
    assert "the policy chose: Jump." in card
    assert "not on" not in card.split("## Limits")[1]


def test_a_report_of_several_policies_sets_the_policy_beside_its_base_and_the_yardsticks(
    lora_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(lora_run, tmp_path / "run")
    ref = ModelRef.load(run)
    own = report_of(ref)["digests"]
    policies = {"base": own | {"adapter_sha256": None, "training_data": None}, "pft": own}
    others = {"base": 0.25, "sft": 0.1, "bag-of-words probe": 0.6}
    report = report_of(ref, rows=[row("pft"), *(row(name, value=value) for name, value in others.items())])
    write_json_at(tmp_path, report | {"digests": {"policies": policies}, "cautions": ["sft is below.", "pft is new."]})
    card = exported(run, tmp_path / "out")
    assert "this policy (95% interval) | position | base model | bag-of-words probe |\n" in card
    assert "| One | Risk | Bold | 40 | 0.75 (0.60 to 0.90) | 0.50 | 0.25 | 0.60 |\n" in card
    assert "- bag-of-words probe: a linear probe on the words of single options." in card
    assert "pft is new." in card
    assert "sft" not in card


def test_each_data_set_of_a_report_has_a_table_of_its_own(lora_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(lora_run, tmp_path / "run")
    ref = ModelRef.load(run)
    own = report_of(ref)["digests"]
    policies = {"base": own | {"adapter_sha256": None, "training_data": None}, "pft": own}
    values = {("plain", "pft"): 0.75, ("plain", "base"): 0.25, ("twins", "pft"): 0.5, ("twins", "base"): 0.1}
    rows = [
        row(policy, value=value, axis=f"Risk ({part})", part=part, position_baseline=None)
        for (part, policy), value in values.items()
    ]
    digests = {"policies": policies, "parts": {"plain": "1234abcd", "twins": "5678dcba"}}
    write_json_at(tmp_path, report_of(ref, rows=rows, digests=digests))
    plain, twins = exported(run, tmp_path / "out").split("## Evaluation")[1].split("Data `")[1:]
    assert plain.startswith("1234abcd`")
    assert twins.startswith("5678dcba`")
    assert [line for line in plain.splitlines() if "Risk" in line] == [
        "| One | Risk (plain) | Bold | 40 | 0.75 (0.60 to 0.90) |  | 0.25 |"
    ]
    assert [line for line in twins.splitlines() if "Risk" in line] == [
        "| One | Risk (twins) | Bold | 40 | 0.50 (0.60 to 0.90) |  | 0.10 |"
    ]


def test_the_evaluations_of_every_test_split_beside_a_run_are_found(lora_run: Path, tmp_path: Path) -> None:
    """A report that names the data of no part, as older ones, lends its digest to the rows of its first part only."""
    run = shutil.copytree(lora_run, tmp_path / "run")
    ref = ModelRef.load(run)
    own = report_of(ref)["digests"]
    rows = [row("run", axis=f"Risk ({part})", part=part) for part in ("plain", "twins")]
    write_json_at(tmp_path, report_of(ref, rows=rows, digests={"policies": {"run": own}}))
    for folder, data in (("evaluation", "1234abcd"), ("evaluation-twins", "5678dcba")):
        (tmp_path / folder).mkdir()
        write_json_at(tmp_path / folder / "run", report_of(ref, digests=own | {"data": data}))
    card = exported(run, tmp_path / "out")
    assert re.findall(r"Data `(\w+)`", card) == ["1234abcd", "5678dcba"]
    assert "Risk (plain)" in card
    assert "Risk (twins)" not in card


def test_a_report_of_another_policy_is_refused_if_given_and_else_left_out(lora_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(lora_run, tmp_path / "run")
    other = replace(ModelRef.load(run), adapter_sha256="f" * 64)
    write_json_at(tmp_path / "run-evaluation", report_of(other))
    with pytest.raises(UserError, match="run-evaluation: not an evaluation of this policy"):
        exported(run, tmp_path / "out", reports=(tmp_path / "run-evaluation",))
    assert not (tmp_path / "out").exists()
    card = exported(run, tmp_path / "out")
    assert "No evaluation of this policy was at hand" in card
    assert SCENARIO in card


def test_a_full_run_is_known_by_its_config_and_data(full_run: Path, tmp_path: Path) -> None:
    digests = {"adapter_sha256": None, "model": digest("config"), "data": "1234abcd", "training_data": "data"}
    report = report_of(ModelRef.load(full_run), digests=digests)
    write_json_at(tmp_path / "report", report)
    card = exported(full_run, tmp_path / "out", reports=(tmp_path / "report",))
    assert "0.75 (0.60 to 0.90)" in card
    assert "one pole of each axis only (Bold, Fast), and not on Careful, Slow." in card


def write_json_at(folder: Path, content: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    write_json(folder / "report.json", content)


def test_a_card_lists_the_settings_that_had_an_effect(lora_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(lora_run, tmp_path / "run")
    train = {"objective": "pft", "alpha": 1.0, "simpo_gamma": 1.0, "epochs": 3, "max_steps": 12, "lr": 0.01}
    write_text(run / "config.yaml", yaml.safe_dump({"train": train, "storage": "/home/me/runs", "lora": {"r": 4}}))
    write_json(run / "job.json", {"result": {"steps": 12, "pairs": 384}})
    training = exported(run, tmp_path / "out").split("## Training")[1].split("## Evaluation")[0]
    assert [key for key in ("train.alpha", "train.max\\_steps", "train.lr", "lora.r") if key not in training] == []
    assert [key for key in ("simpo", "epochs", "/home") if key in training] == []
    assert "12 (384 pairs seen)" in training


def test_free_answers_are_asked_for_without_options(lora_run: Path, tmp_path: Path) -> None:
    """What the training data presents is read from its records, if their digest is that of the training."""
    run = shutil.copytree(lora_run, tmp_path / "run")
    data = write_dataset(tmp_path / "data", [replace(record(num_options=2), presentation="response")])
    write_text(run / "config.yaml", yaml.safe_dump({"data": str(data)}))
    assert "(A) " in exported(run, tmp_path / "other_data")
    manifest = yaml.safe_load((data / "manifest.json").read_text())
    write_json(data / "manifest.json", manifest | {"data_digest": "data"})
    card = exported(run, tmp_path / "out")
    assert "(A) " not in card
    assert "The answer is free text" in card
    assert "1 pairs from 1 rows, source json" in card


@pytest.mark.parametrize(
    ("template", "text", "way"),
    [
        (None, "The town.", ("", True)),
        ("<bos> $A", "The town.", ("", True)),
        ("<bos> $A", "<bos>The town.", ("", False)),
        ("<bos> $A <eos>", "The town.", ("<bos>", False)),
    ],
)
def test_a_programs_tokens_are_those_of_the_training(
    tiny_qwen2: Path, template: str | None, text: str, way: tuple[str, bool]
) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = load_tokenizer(str(tiny_qwen2))
    if template:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=template, special_tokens=[("<bos>", 1), ("<eos>", 2)]
        )
    assert tokenized_as([text], tokenizer) == way


def test_the_license_is_that_of_the_bases_own_card(lora_run: Path, tiny_qwen2: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_qwen2, tmp_path / "base")
    write_text(base / "README.md", "---\nlicense: mit\n---\n# A model\n")
    assert base_facts(replace(ModelRef.load(lora_run), base=str(base))).license == "mit"
    assert base_facts(ModelRef.load(lora_run)).license is None


def test_a_base_from_a_gguf_file_has_the_license_and_the_weights_of_the_file(lora_run: Path) -> None:
    conversion = {"file": "m.gguf", "license": "apache-2.0", "weights": {"F32": 1, "Q4_1": 9}, "sha256": "9f86"}
    facts = base_facts(replace(ModelRef.load(lora_run), base_conversion=conversion))
    assert (facts.license, facts.converted_from) == ("apache-2.0", "m.gguf (F32, Q4_1)")
    assert public_name("/home/me/m.gguf") == "m"
    gone = base_facts(replace(ModelRef.load(lora_run), base="/home/me/m.gguf", base_conversion=conversion))
    assert (gone.name, gone.license, gone.converted_from) == ("m", "apache-2.0", "m.gguf (F32, Q4_1)")
    assert "from the file `m.gguf` of the training (sha256 `9f86`)" in bring_the_base(gone)
    assert "shutil.copytree(place('m.gguf'), 'm')" in bring_the_base(gone)
