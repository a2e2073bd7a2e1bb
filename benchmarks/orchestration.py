"""Measure the cost of orchestration: Ray Train against the bare loop, two workers against one, and ZeRO stages.

`python -m benchmarks.orchestration --json`. Measures the wall-clock seconds of a step, without start-up, checkpoints
and the first steps, on the embedded data with a Qwen2 of 8 layers of width 256, rank-8 LoRA and one thread per worker.
Compared runs take turns, and a ratio is the median over rounds. Two workers need two idle cores.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from benchmarks import harness
from pft_core.toyworld import SHIPPED_BASE
from pft_core.training import LocalContext
from pipelines.config import RunConfig
from pipelines.embedded_data import with_embedded
from pipelines.jobs import ensure_ray
from pipelines.train import build_and_fit, encode_layers, resolve
from pipelines.train import job as train

STEPS = 16
FIRST_STEPS = 4
ROUNDS = 3
PAIRS_PER_STEP = 16
ZERO_STAGES = (0, 1, 2, 3)


def save_model(folder: Path) -> Path:
    """Write a random model of the same size as in benchmarks.train_step, with the embedded data's tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_BASE)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config(folder: Path, *, num_workers: int, engine: dict[str, Any]) -> RunConfig:
    settings = {
        "prompt": {"answer": "option", "condition_position": "after"},
        "lora": {"r": 8, "alpha": 16, "dropout": 0.0},
        "train": {"pairs_per_step": PAIRS_PER_STEP, "max_steps": STEPS, "precision": "fp32", "checkpoint_every": 0},
        "engine": engine,
        "scaling": {"num_workers": num_workers},
    }
    model = str(folder / "model")
    return with_embedded(
        RunConfig(name="orchestration", data="toyworld", model=model, storage=str(folder / "runs"), **settings)
    )


def seconds_of(pairs_per_s: list[float]) -> float:
    """Return the median seconds of a step, without the first steps."""
    return statistics.median(PAIRS_PER_STEP / rate for rate in pairs_per_s[FIRST_STEPS:])


def under_ray(chosen: RunConfig) -> float:
    run_dir = Path(train.run(chosen, fresh=True)["run_dir"])
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return seconds_of([row["pairs_per_s"] for row in rows])


def bare(chosen: RunConfig) -> float:
    rates: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        context = LocalContext(
            Path(folder), device=torch.device("cpu"), log=lambda _, metrics: rates.append(metrics["pairs_per_s"])
        )
        run = resolve(chosen)
        build_and_fit(run, encode_layers(run), context)
    return seconds_of(rates)


def measure(folder: Path) -> dict[str, Any]:
    """Run all variants in turn, and return their ratios with the underlying seconds."""
    save_model(folder / "model")
    ensure_ray()
    torch_engine = {"name": "torch"}
    one = config(folder, num_workers=1, engine=torch_engine)
    two = config(folder, num_workers=2, engine=torch_engine)
    variants: dict[str, Callable[[], float]] = {
        "bare": lambda: bare(one),
        "one worker": lambda: under_ray(one),
        "two workers": lambda: under_ray(two),
    }
    for stage in ZERO_STAGES:
        staged = config(folder, num_workers=2, engine={"name": "deepspeed", "zero_stage": stage})
        variants[f"ZeRO {stage}"] = partial(under_ray, staged)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(ROUNDS):
        for name, run in variants.items():
            seconds[name].append(run())
            harness.say(f"round {number + 1}, {name}: {1000 * seconds[name][-1]:.0f} ms per step")
    zero = {str(stage): round(harness.ratio(seconds, f"ZeRO {stage}", "two workers"), 3) for stage in ZERO_STAGES}
    return {
        "ray_overhead": round(harness.ratio(seconds, "one worker", "bare") - 1, 4),
        "speedup_2_workers": round(harness.ratio(seconds, "one worker", "two workers"), 3),
        "zero": zero,
        "step_ms": {name: [round(1000 * s, 1) for s in values] for name, values in seconds.items()},
        "machine": harness.machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="Print one JSON object as the last line of stdout.")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder))
        ray.shutdown()
    harness.finish(result, as_json=chosen.json)


if __name__ == "__main__":
    main()
