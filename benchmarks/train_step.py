"""Measure one training step on one thread: the paper's scheme, TRL and ours, side by side.

`python -m benchmarks.train_step --shape vcd --json`. All variants have the same weights, pairs, loss, clipping and
AdamW; a step is collation, forward, backward and update.

- padded: the paper's scheme: one pass per side, logits of the whole vocabulary for every token, rows padded to 512
  (long shapes: to the longest row).
- trl: TRL's trainer with the same loss (see trl_step.py). trl_label_head: the same, changed to compute the head on
  label positions only, which TRL does on a GPU but not on a CPU.
- ours: shares the scenario, with the condition after it. before: ours with the paper's prompt, which shares only the
  preamble. separate: ours without sharing.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks import harness, trl_step
from benchmarks.shapes import Shape, examples, shape
from benchmarks.variants import BETA, loss_of, padded_logps
from pft_core.encoding import BranchedBatch, BranchedExample, collate
from pft_core.errors import UserError
from pft_core.scoring import Backend, BranchScorer

SHAPES = ("vcd", "bqd", "dpo1500", "alignx", "vcd_real")
LIMIT_S = 150.0
FLOAT32_LIMIT = 1e-5

Loss = Callable[[], Tensor]


def tiny_model(vocabulary: int) -> nn.Module:
    """Return a Qwen2 of 8 layers of width 256 with the paper's LoRA, rank 8 on q, k, v and o, without dropout."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = LoraConfig(r=8, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(Qwen2ForCausalLM(config), lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.02)  # at zero, lora_A would get no gradient to compare
    return model.train()


def ours(
    model: nn.Module, pairs: Sequence[BranchedExample], chosen: Shape, reference: Tensor, *, backend: Backend
) -> Loss:
    scorer = BranchScorer(model, backend=backend)

    def loss() -> Tensor:
        batch = collate(pairs)
        return loss_of(chosen.loss, scorer(batch), batch.num_labels_R, reference)

    return loss


def padded(model: nn.Module, pairs: Sequence[BranchedExample], chosen: Shape, reference: Tensor) -> Loss:
    def loss() -> Tensor:
        logps, counts = padded_logps(model, pairs, padded_to=chosen.padded_to, device=reference.device)
        return loss_of(chosen.loss, logps, counts, reference)

    return loss


def step_of(model: nn.Module, loss: Loss) -> Callable[[], None]:
    weights = [w for w in model.parameters() if w.requires_grad]
    adamw = torch.optim.AdamW(weights, lr=1e-6)

    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adamw.step()
        adamw.zero_grad()

    return step


def loss_and_gradient(model: nn.Module, loss: Loss) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    value = loss()
    value.backward()
    gradient = torch.cat([w.grad.flatten() for w in model.parameters() if w.requires_grad and w.grad is not None])
    model.zero_grad()
    return value.detach(), gradient


def reference_logps(model: nn.Module, batch: BranchedBatch) -> Tensor:
    with torch.no_grad(), model.disable_adapter():  # type: ignore[operator]  # of PEFT
        return BranchScorer(model, backend="separate")(batch).detach()


def measure(name: str, vocabulary: int) -> dict[str, Any]:
    """Build the variants of a shape, compare their losses and gradients, and time them in turn."""
    chosen = shape(name)
    model = tiny_model(vocabulary)
    after = examples(chosen, condition_position="after", vocabulary=vocabulary)
    before = examples(chosen, condition_position="before", vocabulary=vocabulary)
    references = {id(pairs): reference_logps(model, collate(pairs)) for pairs in (after, before)}

    def variant(make: Callable[..., Loss], pairs: list[BranchedExample], **options: Any) -> tuple[nn.Module, Loss]:
        own = copy.deepcopy(model)
        return own, make(own, pairs, chosen, references[id(pairs)], **options)

    variants = {
        "padded": variant(padded, after),
        "padded_before": variant(padded, before),
        "trl": variant(trl, after),
        "trl_label_head": variant(trl_label_head, after),
        "separate": variant(ours, after, backend="separate"),
        "ours": variant(ours, after, backend="auto"),
        "before": variant(ours, before, backend="auto"),
    }
    results = {key: loss_and_gradient(*variants[key]) for key in ("padded", "trl", "trl_label_head", "ours")}
    harness.say(f"{name}: losses { {key: round(float(value), 6) for key, (value, _) in results.items()} }")
    if chosen.padded_to or not chosen.preamble:
        variants.pop("padded_before")  # same number of tokens as `padded`, or the same prompt
    times = harness.interleave({k: step_of(*v) for k, v in variants.items()}, rounds=9, limit_s=LIMIT_S)
    return figures(chosen, vocabulary, times, results)


def trl(model: nn.Module, pairs: Sequence[BranchedExample], chosen: Shape, reference: Tensor) -> Loss:
    if chosen.loss == "pft":
        return trl_step.sft_loss(model, pairs, use_cpu=True)
    return trl_step.dpo_loss(model, pairs, reference=reference.tolist(), beta=BETA, use_cpu=True)


def trl_label_head(model: nn.Module, pairs: Sequence[BranchedExample], chosen: Shape, reference: Tensor) -> Loss:
    own = trl(model, pairs, chosen, reference)

    def loss() -> Tensor:
        with trl_step.head_on_labels():
            return own()

    return loss


def figures(
    chosen: Shape, vocabulary: int, times: harness.Times, results: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    def deviation(other: str) -> tuple[float, float]:
        (loss, gradient), (other_loss, other_gradient) = results["ours"], results[other]
        return float((loss / other_loss - 1).abs()), float((gradient - other_gradient).norm() / other_gradient.norm())

    loss_padded, gradient_padded = deviation("padded")
    loss_trl, gradient_trl = (max(pair) for pair in zip(deviation("trl"), deviation("trl_label_head"), strict=True))
    limit = chosen.sharing_limit
    return {
        "shape": chosen.name,
        "vocab": vocabulary,
        "vs_padded": round(harness.ratio(times, "padded", "ours"), 3),
        "vs_trl": round(harness.ratio(times, "trl", "ours"), 3),
        "vs_trl_label_head": round(harness.ratio(times, "trl_label_head", "ours"), 3),
        "vs_padded_before": round(
            harness.ratio(times, "padded_before" if "padded_before" in times else "padded", "before"), 3
        ),
        "sharing_limit": round(limit, 3),
        "sharing_fraction": round(harness.ratio(times, "separate", "ours") / limit, 3),
        "equal_loss": max(loss_padded, loss_trl) <= FLOAT32_LIMIT,
        "equal_grad": max(gradient_padded, gradient_trl) <= FLOAT32_LIMIT,
        "deviations": {
            "loss_padded": loss_padded, "gradient_padded": gradient_padded,
            "loss_trl": loss_trl, "gradient_trl": gradient_trl,
        },
        "cpu_ms": {key: round(1000 * sorted(values)[len(values) // 2], 1) for key, values in times.items()},
        "rounds": len(times["ours"]),
        "machine": harness.machine(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True, help="Shape of the pairs to measure.")
    parser.add_argument(
        "--vocab", type=harness.at_least(8), default=8192, help="Size of the vocabulary (Qwen2.5 has 151936)."
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object as the last line of stdout.")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    try:
        result = measure(chosen.shape, chosen.vocab)
    except UserError as error:
        parser.error(str(error))
    harness.finish(result, as_json=chosen.json)


if __name__ == "__main__":
    main()
