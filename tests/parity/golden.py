"""Replay the paper's released trainer: `python -m tests.parity.golden DIR`.

DIR holds a base model, LoRA weights before step 1, tokenized pairs, and the reference's results (`expected.json`). The
replay uses the product's own loop, engine and scorer with `normalization: micro_batch`. The last line of output is one
JSON object with the largest deviations; the exit code is 0 only if they are within the reference's tolerances.
"""

import argparse
import itertools
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from pft_core.encoding.batching import collate
from pft_core.encoding.examples import BranchedExample, branched_example
from pft_core.objectives.nll import paired_nll
from pft_core.scoring.scorer import BranchScorer
from pft_core.training.engines.build import build_engine
from pft_core.training.engines.engine import Engine
from pft_core.training.engines.settings import EngineSettings, OptimizerSettings
from pft_core.training.local_context import LocalContext
from pft_core.training.loop import lr_at, run_bins
from pft_core.training.order import DataOrder
from pft_core.training.planning import LoopSettings, Update, bin_denominators, read_batch
from pft_core.training.settings import TrainSettings
from tests.builders import MemoryStore

TOLERANCES = {"loss": 1e-4, "grad_norm_rel": 1e-3, "final_weights": 1e-4, "initial_ce": 1e-4}


def reference_bins(num_pairs: int, batch_size: int, microbatches_per_step: list[int]) -> list[list[list[int]]]:
    """Return the pairs of each micro-batch of each step, in file order. Micro-batches end with the epoch, and the
    leftover ones of an epoch go into the first step of the next."""
    epoch = [list(range(i, min(i + batch_size, num_pairs))) for i in range(0, num_pairs, batch_size)]
    endless = itertools.cycle(epoch)
    return [list(itertools.islice(endless, count)) for count in microbatches_per_step]


def load_pairs(folder: Path) -> list[BranchedExample]:
    """Return pairs as trees. As in the reference, a row longer than `max_length` loses its right end, so its answer is
    cut."""
    raw = json.loads((folder / "pairs_tokenized.json").read_text())
    return [_pair(f"pair-{i}", pair, raw["max_length"]) for i, pair in enumerate(raw["pairs"])]


def _pair(example_id: str, pair: dict[str, Any], max_length: int) -> BranchedExample:
    prompts = [np.asarray(pair[side]["prompt_ids"][:max_length], dtype=np.int32) for side in "ab"]
    rooms = [max_length - len(prompt) for prompt in prompts]
    answers = [
        np.asarray(pair[side]["response_ids"][:room], dtype=np.int32) for side, room in zip("ab", rooms, strict=True)
    ]
    return branched_example(example_id, prompts, answers, (0, 1))


def load_scorer(folder: Path) -> BranchScorer:
    """Load the base model with the reference's initial LoRA weights."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    return BranchScorer(PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True))


def initial_ce(scorer: BranchScorer, examples: list[BranchedExample]) -> np.ndarray:
    """Return the token-mean cross-entropy per pair and side [pairs, 2], with each pair in a batch of its own."""
    scorer.eval()
    with torch.no_grad():
        rows = [-scorer(batch := collate([e])) / batch.num_labels_R for e in examples]
    scorer.train()
    return torch.stack(rows).numpy()


def replay(
    folder: Path, expected: dict[str, Any], scorer: BranchScorer, examples: list[BranchedExample]
) -> list[tuple[list[float], float]]:
    """Return for each step the losses of its micro-batches and the gradient norm before clipping."""
    settings = reference_settings(expected, num_pairs=len(examples))
    engine, store = reference_engine(scorer, expected), MemoryStore(examples)
    counts = [len(step["micro_losses"]) for step in expected["trajectory"]]
    accumulation = expected["gradient_accumulation_steps"]
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        run: dict[str, Any] = {"settings": settings, "store": store}
        context = LocalContext(Path(scratch), device=torch.device("cpu"))
        for step, bins in enumerate(reference_bins(len(examples), expected["batch_size"], counts)):
            unused = settings.objective.denominators(store.label_counts(range(len(store))))
            denominators = [bin_denominators(items, unused, **run) for items in bins]
            update = Update((0, 1), [read_batch(store, items, (0, 1)) for items in bins], denominators, unused)
            bins_outcome = run_bins(update, objective=settings.objective, engine=engine, context=context)
            micro_losses = [accumulation * loss for loss in bins_outcome.losses]
            outcomes.append((micro_losses, engine.step(lr_at(step, settings))))
    return outcomes


def reference_settings(expected: dict[str, Any], *, num_pairs: int) -> LoopSettings:
    """Return our settings for the reference's run."""
    pairs_per_step = expected["batch_size"] * expected["gradient_accumulation_steps"]
    train = TrainSettings(
        normalization="micro_batch",
        pairs_per_step=pairs_per_step,
        tokens_per_microbatch=10**9,
        pairs_per_microbatch=expected["batch_size"],
        lr=expected["learning_rate"],
        schedule="linear",
        warmup_steps=expected["warmup_steps"],
        checkpoint_every=0,
    )
    return LoopSettings(
        train,
        objective=paired_nll(alpha=expected["alpha"], beta=expected["beta"]),
        order=DataOrder(num_pairs, seed=0, shuffle=False),
        total_pairs=pairs_per_step * len(expected["trajectory"]),
        schedule_steps=expected["scheduler_total_steps"],
        seed=0,
    )


def reference_engine(scorer: BranchScorer, expected: dict[str, Any]) -> Engine:
    """Return a torch engine with the reference's optimizer settings."""
    optimizer = OptimizerSettings(
        weight_decay=expected["weight_decay"], max_grad_norm=expected["max_grad_norm"], precision="fp32"
    )
    return build_engine(scorer, EngineSettings(name="torch"), optimizer, device=torch.device("cpu"))


def weight_deviation(folder: Path, scorer: BranchScorer) -> float:
    """Return the largest absolute difference between our trained LoRA weights and the reference's; both must have the
    same names."""
    ours = dict(scorer.model.named_parameters())
    reference = load_file(folder / "final_lora.safetensors")
    trainable = {name for name, p in ours.items() if p.requires_grad}
    assert trainable == set(reference), sorted(trainable ^ set(reference))[:4]
    return max(float((ours[name].detach() - weight).abs().max()) for name, weight in reference.items())


def largest_difference(ours: np.ndarray, reference: list[list[float | None]]) -> float:
    """Return the largest absolute difference. NaN is allowed only if both values are NaN, for a side without tokens."""
    want = np.array(reference, dtype=np.float64)
    difference = np.where(np.isnan(ours) & np.isnan(want), 0.0, np.abs(ours - want))
    return float(difference.max())


def deviations(folder: Path) -> dict[str, float]:
    """Run the whole comparison and return the largest deviations; a NaN fails `within_tolerance`."""
    expected = json.loads((folder / "expected.json").read_text())
    examples, scorer = load_pairs(folder), load_scorer(folder)
    initial = largest_difference(initial_ce(scorer, examples), expected["initial_mean_ce_per_pair"])
    outcomes = replay(folder, expected, scorer, examples)
    losses, norms = [], []
    for (micro_losses, norm), reference in zip(outcomes, expected["trajectory"], strict=True):
        losses += [abs(a - b) for a, b in zip(micro_losses, reference["micro_losses"], strict=True)]
        norms.append(abs(norm / reference["grad_norm_before_clip"] - 1))
    return {
        "initial_ce": initial,
        "loss": max(losses),
        "grad_norm_rel": max(norms),
        "final_weights": weight_deviation(folder, scorer),
    }


def within_tolerance(largest: dict[str, float]) -> bool:
    """Return whether all deviations are finite and within `TOLERANCES`."""
    return all(math.isfinite(largest[key]) and largest[key] <= limit for key, limit in TOLERANCES.items())


def main() -> int:
    parser = argparse.ArgumentParser(description="Replay the paper's trainer and print the largest deviations.")
    parser.add_argument("folder", type=Path, help="Folder with the reference's model, pairs and results.")
    torch.set_num_threads(1)
    largest = deviations(parser.parse_args().folder)
    print(json.dumps(largest))
    return 0 if within_tolerance(largest) else 1


if __name__ == "__main__":
    sys.exit(main())
