"""An exported policy scores as it does here, and a bad request leaves everything as it was."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from pft_core.encoding.examples import BranchedExample
from pft_core.errors import UserError
from pft_core.evaluation.answers import AnswerSettings, Question, encode_options, score_branches
from pft_core.files import read_json, write_json
from pft_core.policies.model import load_policy
from pft_core.policies.model_ref import ModelRef, adapter_digests
from pft_core.policies.pretrained import load_tokenizer
from pft_core.policies.shipped_base import SHIPPED_BASE
from pft_core.scoring.scorer import BranchScorer
from pipelines.cli import main
from pipelines.export import job
from pipelines.export.export_config import ExportConfig
from tests.builders import record
from tests.serving import CPU, write_policy

Rows = list[tuple[list[int], list[bool]]]  # tokens of prompt and answer, and which of them are labels


def exported(run: Path, to: Path, **options: Any) -> dict[str, Any]:
    return job.run(ExportConfig(run, to, **options))


def encoded(run: Path) -> list[BranchedExample]:
    """Return items under both poles, with their options as branches, as an evaluation encodes them."""
    ref = ModelRef.load(run)
    settings = AnswerSettings(ref.style, ref.space, 2048, 8192, 64)
    records = [record(number, axis=axis.name) for number, axis in enumerate(ref.space.axes)]
    questions = [Question(each, "one", side) for each in records for side in (0, 1)]
    return encode_options(questions, tokenizer=load_tokenizer(ref.weights or ref.base), settings=settings)  # type: ignore[return-value]


def scored_here(run: Path) -> NDArray[np.float32]:
    ref = ModelRef.load(run)
    model = load_policy(ref.base, ref.adapter, ref.weights, precision="fp32", device=CPU)
    return np.concatenate(score_branches(encoded(run), scorer=BranchScorer(model), tokens_per_batch=4096))


def rows_of(examples: Sequence[BranchedExample]) -> Rows:
    return [
        ([*e.prefix_ids.tolist(), *b.input_ids.tolist()], [False] * len(e.prefix_ids) + b.label_mask.tolist())
        for e in examples
        for b in e.branches
    ]


@torch.no_grad()
def scored_plainly(model: Any, rows: Rows) -> list[float]:
    """Sum the log-probabilities of label tokens from a plain forward pass."""
    sums = []
    for ids, is_label in rows:
        logps = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        sums.append(sum(float(logps[i - 1, ids[i]]) for i in range(len(ids)) if is_label[i]))
    return sums


def test_an_exported_adapter_scores_as_the_policy(styled_run: Path, tiny_qwen2: Path, tmp_path: Path) -> None:
    result = exported(styled_run, tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype="float32")
    plain = PeftModel.from_pretrained(base, tmp_path / "out")
    scores = scored_plainly(plain, rows_of(encoded(styled_run)))
    np.testing.assert_allclose(scores, scored_here(styled_run), rtol=0, atol=1e-4)
    assert result["files"] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert result["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())


def test_an_exported_merged_model_scores_as_the_policy_and_reads_as_the_base(
    lora_run: Path, tiny_qwen2: Path, tmp_path: Path
) -> None:
    assert exported(lora_run, tmp_path / "out", merge=True)["merged"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert plain.dtype == torch.float32
    scores = scored_plainly(plain, rows_of(encoded(lora_run)))
    np.testing.assert_allclose(scores, scored_here(lora_run), rtol=0, atol=1e-4)
    ours, theirs = (AutoTokenizer.from_pretrained(place) for place in (tiny_qwen2, tmp_path / "out"))
    assert ours("The river town.")["input_ids"] == theirs("The river town.")["input_ids"]
    assert (tmp_path / "out" / "generation_config.json").is_file()


@pytest.mark.parametrize("merge", [False, True])
def test_a_fully_fine_tuned_run_is_exported_as_it_is(full_run: Path, tmp_path: Path, merge: bool) -> None:
    result = exported(full_run, tmp_path / "out", merge=merge)
    assert (result["kind"], result["merged"]) == ("weights", False)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    scores = scored_plainly(plain, rows_of(encoded(full_run)))
    np.testing.assert_allclose(scores, scored_here(full_run), rtol=0, atol=1e-4)


def test_no_path_of_this_machine_is_exported(lora_run: Path, tiny_qwen2: Path, tmp_path: Path) -> None:
    """Adapters of earlier versions name the base by its path."""
    run = shutil.copytree(lora_run, tmp_path / "run")
    config = run / "adapter" / "adapter_config.json"
    write_json(config, read_json(config, what="config") | {"base_model_name_or_path": str(tiny_qwen2)})
    ref = read_json(run / "model_ref.json", what="reference")
    write_json(run / "model_ref.json", ref | adapter_digests(run / "adapter"))
    for to, merge in (("adapter", False), ("merged", True)):
        exported(run, tmp_path / to, merge=merge)
        files = [file for file in (tmp_path / to).iterdir() if file.suffix != ".safetensors"]
        texts = "".join(file.read_text(encoding="utf-8") for file in files)
        private = [str(tiny_qwen2.parent), str(tmp_path), str(lora_run), str(Path.home()), str(Path.cwd())]
        assert [path for path in private if len(path) > 1 and path in texts] == []
    named = read_json(tmp_path / "adapter" / "adapter_config.json", what="config")["base_model_name_or_path"]
    assert named == tiny_qwen2.name


def test_an_adapter_of_a_hub_model_names_it_as_the_hub_does(lora_run: Path, tmp_path: Path) -> None:
    from pipelines.export.weights import copy_adapter

    copy_adapter(lora_run / "adapter", "Qwen/Qwen2.5-3B-Instruct", tmp_path)
    named = read_json(tmp_path / "adapter_config.json", what="config")["base_model_name_or_path"]
    assert named == "Qwen/Qwen2.5-3B-Instruct"


def changed_adapter(run: Path) -> None:
    file = run / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")


def lost_base(run: Path) -> None:
    ref = read_json(run / "model_ref.json", what="reference")
    marks = ref["base_marks"] | {"place": "/nosuch/base"}
    write_json(run / "model_ref.json", ref | {"base": "./nosuch", "base_marks": marks})


def unfinished(run: Path) -> None:
    (run / "model_ref.json").unlink()


def one_level_up(run: Path) -> None:
    run.rename(run.with_name("inner"))
    run.mkdir()
    run.with_name("inner").rename(run / "inner")


FAULTS = [
    (changed_adapter, "not the adapter that its model_ref.json describes"),
    (lost_base, "no such folder: put the model there"),
    (unfinished, "has no model_ref.json: finish it with `pft train` first"),
    (one_level_up, "give a run inside it: RUN/inner"),
    (shutil.rmtree, "no such run: give the folder of a finished `pft train`"),
]


@pytest.mark.parametrize(("break_it", "message"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_run_that_cannot_be_exported_is_named_and_nothing_is_written(
    lora_run: Path, tmp_path: Path, break_it: Any, message: str
) -> None:
    run = shutil.copytree(lora_run, tmp_path / "run")
    break_it(run)
    with pytest.raises(UserError, match=message.replace("RUN", str(run))):
        exported(run, tmp_path / "out" / "deep")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused_with_exit_code_2_and_left_alone(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["pft", "export", str(lora_run), "--to", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert (
        capfd.readouterr().err == f"error: --to {tmp_path}: the folder is not empty: choose another one, or empty it\n"
    )
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("mine.txt", "mine")]


def test_a_folder_that_others_fill_meanwhile_is_left_to_them(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_card(*_: Any) -> str:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
        return "card"

    monkeypatch.setattr(job, "render_card", slow_card)
    with pytest.raises(UserError, match="the folder is not empty"):
        exported(lora_run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]


def test_an_empty_folder_is_filled(lora_run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert "README.md" in exported(lora_run / "model_ref.json", tmp_path / "out")["files"]


VLLM_PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":
    model, adapter, rows = json.load(open(sys.argv[1]))
    llm = LLM(model, dtype="float32", max_model_len=512, enable_lora=adapter is not None)
    request = LoRARequest("policy", 1, adapter) if adapter else None
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids, _ in rows], params, lora_request=request)
    sums = [
        sum(logps[token].logprob for logps, token, is_label in zip(output.prompt_logprobs, ids, labels) if is_label)
        for output, (ids, labels) in zip(outputs, rows)
    ]
    json.dump(sums, open(sys.argv[2], "w"))
"""


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("merge", [False, True])
def test_vllm_alone_scores_an_export_as_the_policy(tmp_path: Path, merge: bool) -> None:
    pytest.importorskip("vllm")
    run = write_policy(tmp_path / "run", SHIPPED_BASE, seed=1)
    exported(run, tmp_path / "out", merge=merge)
    model, adapter = (str(tmp_path / "out"), None) if merge else (str(SHIPPED_BASE), str(tmp_path / "out"))
    (tmp_path / "asked.json").write_text(json.dumps([model, adapter, rows_of(encoded(run))]))
    run_alone(VLLM_PROGRAM, tmp_path, "asked.json", "sums.json")
    sums = json.loads((tmp_path / "sums.json").read_text())
    np.testing.assert_allclose(sums, scored_here(run), rtol=0, atol=1e-4)


def run_alone(program: str, folder: Path, *arguments: str) -> str:
    """Run a program as a file in a folder, in a process of its own; return what it printed."""
    (folder / "program.py").write_text(program)
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    command = [sys.executable, "program.py", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stderr
    return done.stdout
