"""Measure training and evaluation of SmolLM2-135M on VCD, on two threads, beside TRL and plain transformers.

    PFT_DATA=/path/to/data python -m benchmarks.real --json

Needs `make setup-smollm2`, the released VCD files in PFT_DATA/vcd, and Linux. It takes at most 40 minutes on two cores:
steps and items are measured until their share of the time is used up. Every side runs with the same weights in the same
precision: bf16 if the CPU has instructions for it (the frozen base in bf16, the adapter in fp32, a training forward
under autocast), else fp32.

Training: the settings of the recipe with 4 pairs a step, in one process for each variant, with the threads and the
memory allocator of a worker of `pft train`; the variants take turns, step by step, over the same pairs in the same
order. The loss is TRL's, the mean over the label tokens of both sides, and ours computes it on pairs. TRL sees two full
rows for each pair, padded to the longest of 4, without shuffling.

- train_tokens_per_s: tokens of our pairs per second, a shared scenario counted once, without padding.
- train_peak_mb: peak of resident memory above what the process held before the first forward of its scorer, in MiB.
- counted_mb: what the memory plan counts for the same (activations, gradients, optimizer), in MiB.
- vs_trl: seconds of a step of SFTTrainer as shipped, divided by ours; the median over rounds.
- vs_trl_head_on_labels: the same against SFTTrainer with its head on label positions only, which it does on a GPU.

Evaluation: each item under both sides and without a condition; the policy has an adapter. Groups of 8 items in random
order; ours and plain transformers take turns until the latter's time is used up, then ours goes on alone.

- evaluate_items_per_s: items per second of what a worker of `pft evaluate` runs, without the base's answers.
- evaluate_vs_naive: seconds of plain transformers, divided by ours; the median over groups. It runs one row for each
  candidate, sorted by length, in padded batches of the same token budget, and computes all logits.
- evaluate_208_s: seconds for the 208 items of VCD's test file; evaluation.source_of_208 says if all were measured.
"""

import argparse
import os
import tempfile
from pathlib import Path

from benchmarks import harness
from benchmarks.real.measuring import TEST_ITEMS, measure
from pft_core.errors import UserError
from pipelines.config import RunConfig, load_config, with_precision
from pipelines.embedded_data import with_embedded
from pipelines.prepare.job import PrepareConfig, prepare
from pipelines.train import worker_environment

RECIPE = "vcd_smollm2-135m_lora"
ROUNDS = 12
THREADS = 2
TRAIN_S, EVALUATE_S, NAIVE_S = 720.0, 840.0, 300.0  # limits on training, and on the evaluation and its naive side


def prepared(folder: Path, split: str) -> str:
    """Prepare one file of VCD. Raises UserError if it is missing."""
    file = Path(os.environ.get("PFT_DATA", "")) / "vcd" / f"{split}.json"
    if not file.is_file():
        raise UserError("the released VCD files are needed: set PFT_DATA to the folder that holds vcd/")
    output = folder / split
    prepare(PrepareConfig(source="vcd", input=[str(file)], output=str(output)), output)
    return str(output)


def config_of(folder: Path) -> RunConfig:
    """Return the recipe's settings for VCD, with steps that are short enough to take turns."""
    changes = {
        "data": prepared(folder, "train"),
        "storage": folder / "runs",
        "train.pairs_per_step": 4,
        "train.max_steps": 1 + ROUNDS,
        "train.warmup_steps": 0,
        "train.checkpoint_every": 0,
        "scaling.threads_per_worker": THREADS,
    }
    return with_precision(with_embedded(load_config(RECIPE, [f"{key}={value}" for key, value in changes.items()])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="Print one JSON object as the last line of stdout.")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory(prefix="pft-real-") as name:
        folder = Path(name)
        try:
            config, test = config_of(folder), prepared(folder, "test")
            os.environ.update(worker_environment(config).get("env_vars", {}))  # of the processes that train
            limits = {"train_s": TRAIN_S, "evaluate_s": EVALUATE_S, "naive_s": NAIVE_S}
            result = measure(config, test, folder, num_items=TEST_ITEMS, **limits)
        except UserError as error:
            parser.error(str(error))
    harness.finish(result, as_json=arguments.json)


if __name__ == "__main__":
    main()
