"""Measure training steps on a CUDA device: the paper's scheme and ours, on models shaped like Qwen2.5-3B and 7B.

    python -m benchmarks.gpu --json                                     # everything
    python -m benchmarks.gpu --models 7b --trainings lora --shapes vcd  # a part, if the device is yours only briefly
    python -m benchmarks.gpu --dry-run --json                           # every code path at tiny sizes, on any machine

Weights are random, and nothing is downloaded; the benchmark needs neither Ray nor DeepSpeed. The equality tests run on
the same device with `PFT_TEST_DEVICE=cuda python -m pytest tests/pft_core/scoring/test_attention.py`; this command
checks equality in float32 too.

A step is collation, forward, backward, clipping and AdamW, with the engine's precision: bf16 autocast, trained weights
in float32, and a base in bf16 if LoRA freezes it. A step takes as many pairs as fit into `--tokens` if each prefix
counts once (`--tokens 0`: only the pairs of the shape).

- padded: the paper's scheme: two passes, rows padded to 512 (long shapes: to the longest row), all logits, in the
  micro-batches of the shape.
- separate, split, flex: ours, in bins of `--tokens`: prefixes not shared, shared by dense attention, and shared by
  FlexAttention.

tokens_per_s counts real tokens: no padding, and each prefix once if it is shared, twice if not. pairs_per_s is
comparable between all variants. mfu: the floating-point operations that the real tokens and labels of a variant need
(`needed_flops`, without recomputation), divided by the measured time and by the measured rate of a bf16 matmul.
"""

import argparse
import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2Config

from benchmarks import harness
from benchmarks.shapes import PairLengths, Shape, examples, shape
from benchmarks.variants import loss_of, padded_logps
from pft_core.encoding import BranchedExample, collate, plan_bins
from pft_core.errors import UserError
from pft_core.policies import LoraSettings, add_lora, checkpoint_activations
from pft_core.scoring import Backend, BranchScorer
from pft_core.training import EngineSettings, OptimizerSettings, TorchEngine

SHAPES = ("vcd", "bqd", "dpo1500", "alignx")
BACKENDS: tuple[Backend, ...] = ("separate", "split", "flex")
LORA = LoraSettings(r=8, alpha=32, dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
LEARNING_RATE = 1e-6
FLOAT32_LIMIT = 1e-5
DRY_RUN_SCALE = 16  # a dry run divides lengths by this

# The configs published with the weights.
CONFIGS = {
    "3b": Qwen2Config(
        vocab_size=151936, hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
        num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True,
    ),
    "7b": Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, max_position_embeddings=32768, tie_word_embeddings=False,
    ),
}  # fmt: skip
TINY = Qwen2Config(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=False,
)  # fmt: skip

Bin = tuple[list[BranchedExample], Tensor]  # pairs, and the reference log-probabilities [R] of their branches
LossOfBin = Callable[[list[BranchedExample], Tensor], Tensor]
Step = Callable[[], None]


@dataclass(frozen=True)
class Work:
    """One step of a variant: its bins, whether they run each prefix only once, and the loss of a bin."""

    bins: list[Bin]
    shares_prefix: bool
    loss: LossOfBin

    @property
    def pairs(self) -> list[BranchedExample]:
        return [pair for pairs, _ in self.bins for pair in pairs]

    @property
    def num_tokens(self) -> int:
        return sum(e.num_tokens if self.shares_prefix else e.num_tokens_separate for e in self.pairs)


def scaled(chosen: Shape, divisor: int) -> Shape:
    """Return the shape with all lengths divided by `divisor`."""

    def short(length: int) -> int:
        return max(1, length // divisor) if length else 0

    def shorter(pair: PairLengths) -> PairLengths:
        first, second = pair.answers
        return PairLengths(short(pair.shared), short(pair.descriptor), (short(first), short(second)))

    padded_to = chosen.padded_to and short(chosen.padded_to)
    return replace(chosen, pairs=tuple(map(shorter, chosen.pairs)), padded_to=padded_to)


def random_model(config: Qwen2Config, *, training: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Build a model with random weights on the device, with the paper's adapter or with all weights trained."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return add_lora(model, LORA, seed=0) if training == "lora" else model


def set_checkpointing(model: Any, on: bool) -> None:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if on:
        checkpoint_activations(model)
    else:
        base.gradient_checkpointing_disable()


def bf16(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16)


def our_loss(scorer: BranchScorer, kind: str, device: torch.device) -> LossOfBin:
    def loss(pairs: list[BranchedExample], reference_R: Tensor) -> Tensor:
        batch = collate(pairs).to(device)
        return loss_of(kind, scorer(batch), batch.num_labels_R, reference_R)

    return loss


def padded_loss(model: nn.Module, chosen: Shape, device: torch.device) -> LossOfBin:
    def loss(pairs: list[BranchedExample], reference_R: Tensor) -> Tensor:
        logps, counts = padded_logps(model, pairs, padded_to=chosen.padded_to, device=device)
        return loss_of(chosen.loss, logps, counts, reference_R)

    return loss


def step_of(engine: TorchEngine, work: Work) -> Step:
    """Return a function that runs the bins of a step one after another and updates the weights once."""

    def step() -> None:
        for number, (pairs, reference_R) in enumerate(work.bins, 1):
            with bf16(engine.device):
                loss = work.loss(pairs, reference_R) / len(work.bins)
            engine.backward(loss, is_last=number == len(work.bins))
        engine.step(LEARNING_RATE)

    return step


def works_of(engine: TorchEngine, chosen: Shape, *, vocabulary: int, tokens: int) -> dict[str, Work]:
    """Return one step of a shape for every variant: the same pairs, in the bins that each variant runs."""
    model, device = engine.scorer.model, engine.device
    groups = [examples(chosen, condition_position="after", vocabulary=vocabulary)]
    tokens = max(tokens, sum(e.num_tokens_separate for e in groups[0]))
    copies = tokens // sum(e.num_tokens for e in groups[0])
    groups += [examples(chosen, condition_position="after", vocabulary=vocabulary, seed=i) for i in range(1, copies)]
    known = {
        id(pair): logps_2
        for pairs in groups
        for pair, logps_2 in zip(pairs, reference_logps(model, pairs, device).view(-1, 2), strict=True)
    }

    def with_reference(pairs: Sequence[BranchedExample]) -> Bin:
        return list(pairs), torch.cat([known[id(pair)] for pair in pairs])

    works = {"padded": Work([with_reference(g) for g in groups], False, padded_loss(model, chosen, device))}
    pairs = [pair for group in groups for pair in group]
    for backend in BACKENDS:
        scorer = BranchScorer(model, backend=backend)
        lengths = [e.num_tokens if scorer.shares_prefix else e.num_tokens_separate for e in pairs]
        bins = [with_reference([pairs[i] for i in b]) for b in plan_bins(lengths, tokens_per_microbatch=tokens)]
        works[backend] = Work(bins, scorer.shares_prefix, our_loss(scorer, chosen.loss, device))
    return works


def reference_logps(model: nn.Module, pairs: Sequence[BranchedExample], device: torch.device) -> Tensor:
    """Return the reference log-probabilities [R]: those of the model before any update."""
    with torch.no_grad(), bf16(device):
        return BranchScorer(model, backend="separate")(collate(pairs).to(device))


def measure_ms(run: Callable[[], object], device: torch.device) -> float:
    """Run once, and return the milliseconds until the device has finished."""
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - started)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end)


def matmul_flops_per_s(device: torch.device, *, size: int) -> float:
    """Measure the rate of one large bf16 matrix product: the median of ten runs after three for warm-up."""
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    times = [measure_ms(lambda: left @ right, device) for _ in range(13)][3:]
    return 2 * size**3 / (statistics.median(times) / 1000)


def needed_flops(config: Qwen2Config, work: Work, *, training: str) -> float:
    """Count the operations that a step needs, given whether prefixes are shared. In the last layer, all tokens need
    keys and values; only the tokens that predict a label need the rest of the layer and the head."""
    width, kv_heads = config.hidden_size, config.num_key_value_heads or config.num_attention_heads
    kv_width = width // config.num_attention_heads * kv_heads
    kv_weights, other_weights = 2 * width * kv_width, width * (2 * width + 3 * config.intermediate_size)
    lower, tokens = config.num_hidden_layers - 1, work.num_tokens
    labels = sum(branch.num_labels for pair in work.pairs for branch in pair.branches)
    products = lower * (kv_weights + other_weights) * tokens + kv_weights * tokens + other_weights * labels
    products += width * config.vocab_size * labels
    attended = [attended_keys(pair, shares_prefix=work.shares_prefix) for pair in work.pairs]
    seen = sum(lower * by_all + by_predictors for by_all, by_predictors in attended)
    # Products: forward, gradient of the activations, and gradient of the weights if all are trained. Attention: scores
    # and weighted sum in the forward; gradients of query, key, value and attention weights in the backward.
    return 2 * products * (2 if training == "lora" else 3) + (4 + 8) * width * seen


def attended_keys(pair: BranchedExample, *, shares_prefix: bool) -> tuple[int, int]:
    """Return the number of keys seen by all queries of a pair, and by those queries that predict a label."""

    def causal(length: int) -> int:
        return length * (length + 1) // 2

    prefix, lengths = len(pair.prefix_ids), [len(b.input_ids) for b in pair.branches]
    by_all = sum(n * prefix + causal(n) for n in lengths) + causal(prefix) * (1 if shares_prefix else len(lengths))
    # The token before a branch's place i predicts the label there; it sees the prefix and i tokens of the branch.
    return by_all, sum(int((prefix + b.label_mask.nonzero()[0]).sum()) for b in pair.branches)


def attempt(run: Callable[[], object], engine: TorchEngine) -> str | None:
    """Run and return None, or the reason for a failure: a variant that does not fit must not stop the others."""
    try:
        run()
        return None
    except (RuntimeError, UserError) as error:
        reason = "out of memory" if isinstance(error, torch.OutOfMemoryError) else f"not measured: {first_line(error)}"
    engine.adamw.zero_grad()
    engine.adamw.state.clear()  # it may be incomplete
    release_memory(engine.device)
    return reason


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


def release_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def warm_up(steps: Mapping[str, Step], engine: TorchEngine) -> tuple[dict[str, str], dict[str, float | str]]:
    """Run every variant twice; return the failed ones with their reason, and the peak memory in GB of the others."""
    failed: dict[str, str] = {}
    peaks: dict[str, float | str] = {}
    for name, step in steps.items():
        reason = attempt(step, engine)
        if engine.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(engine.device)
        reason = reason or attempt(step, engine)
        if reason:
            failed[name] = reason
        elif engine.device.type == "cuda":
            peaks[name] = round(torch.cuda.max_memory_allocated(engine.device) / 1e9, 2)
        else:
            peaks[name] = "not measured: no CUDA device"
    return failed, peaks


def measure_shape(
    engine: TorchEngine, config: Qwen2Config, chosen: Shape, *, training: str, tokens: int, rounds: int, rate: float
) -> Iterator[dict[str, Any]]:
    """Yield one row per variant: its figures, or the reason why there are none."""
    try:
        works = works_of(engine, chosen, vocabulary=config.vocab_size, tokens=tokens)
    except torch.OutOfMemoryError:
        yield {"measured": "out of memory"}
        return
    steps = {name: step_of(engine, work) for name, work in works.items()}
    failed, peaks = warm_up(steps, engine)
    times: harness.Times = {name: [] for name in steps if name not in failed}
    for _ in range(rounds):
        for name in times:
            times[name].append(measure_ms(steps[name], engine.device))
    for name, work in works.items():
        if name in failed:
            yield {"variant": name, "measured": failed[name]}
            continue
        seconds = statistics.median(times[name]) / 1000
        yield {
            "variant": name,
            "measured": "yes",
            "pairs": len(work.pairs),
            "forwards": len(work.bins),
            "ms": round(1000 * seconds, 2),
            "pairs_per_s": round(len(work.pairs) / seconds, 2),
            "tokens_per_s": round(work.num_tokens / seconds, 1),
            "mfu": round(needed_flops(config, work, training=training) / seconds / rate, 4),
            "peak_gb": peaks[name],
            "vs_padded": round(harness.ratio(times, "padded", name), 3) if "padded" in times else "not measured",
        }


def measure_model(
    size: str, config: Qwen2Config, shapes: Sequence[Shape], checkpointing: Sequence[str], training: str,
    *, device: torch.device, **options: Any,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield the rows of one model, or a single row with the reason if the model does not fit."""
    about: dict[str, Any] = {"model": size, "training": training}
    dtype = torch.bfloat16 if training == "lora" else torch.float32
    try:
        model = random_model(config, training=training, dtype=dtype, device=device)
        engine = TorchEngine(BranchScorer(model), EngineSettings(), OptimizerSettings(), device=device)
    except torch.OutOfMemoryError:
        yield about | {"measured": "out of memory"}
        return
    for recomputes, chosen in product(checkpointing, shapes):
        set_checkpointing(model, recomputes == "on")
        for row in measure_shape(engine, config, chosen, training=training, **options):
            yield about | {"shape": chosen.name, "checkpointing": recomputes} | row


def check_equality(device: torch.device) -> dict[str, Any]:
    """Compare every variant with `separate` in float32 on a small model: relative deviations of loss and gradient."""
    deviations: dict[str, Any] = {}
    for name in ("vcd", "dpo1500"):
        model = random_model(TINY, training="lora", dtype=torch.float32, device=device).train()
        for weight_name, weight in model.named_parameters():
            if "lora_B" in weight_name:
                nn.init.normal_(weight, std=0.02)  # at zero, lora_A would get no gradient to compare
        chosen = scaled(shape(name), DRY_RUN_SCALE // 4)
        pairs = examples(chosen, condition_position="after", vocabulary=TINY.vocab_size)
        reference_R = reference_logps(model, pairs, device)
        losses = {"padded": padded_loss(model, chosen, device)} | {
            b: our_loss(BranchScorer(model, backend=b), chosen.loss, device) for b in BACKENDS
        }
        want = loss_and_gradient(model, losses.pop("separate"), pairs, reference_R)
        for variant, loss in losses.items():
            deviations[f"{name}/{variant}"] = deviation(model, loss, pairs, reference_R, want)
    return deviations


def deviation(
    model: nn.Module, loss: LossOfBin, pairs: list[BranchedExample], reference_R: Tensor, want: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    try:
        value, gradient = loss_and_gradient(model, loss, pairs, reference_R)
    except (RuntimeError, UserError) as error:
        return {"measured": f"not measured: {first_line(error)}"}
    deviations = float((value / want[0] - 1).abs()), float((gradient - want[1]).norm() / want[1].norm())
    return {"loss": deviations[0], "gradient": deviations[1], "equal": max(deviations) <= FLOAT32_LIMIT}


def loss_and_gradient(
    model: nn.Module, loss: LossOfBin, pairs: list[BranchedExample], reference_R: Tensor
) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    value = loss(pairs, reference_R)
    value.backward()
    return value.detach(), torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])


def measure(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure everything that the options select, and print each row to stderr when it is done."""
    rate = matmul_flops_per_s(device, size=256 if chosen.dry_run else 8192)
    result: dict[str, Any] = {
        "dry_run": chosen.dry_run,
        "machine": harness.machine(),
        "matmul_tflops_per_s": round(rate / 1e12, 4),
        "tokens": chosen.tokens,
        "equality": check_equality(device),
    }
    harness.say(f"bf16 matmul: {rate / 1e12:.4g} TFLOP/s; equality with separate in float32: {result['equality']}")
    configs = {"tiny": TINY} if chosen.dry_run else {size: CONFIGS[size] for size in chosen.models}
    shapes = [scaled(shape(s), DRY_RUN_SCALE if chosen.dry_run else 1) for s in chosen.shapes]
    options = {"device": device, "tokens": chosen.tokens, "rounds": chosen.rounds, "rate": rate}
    rows: list[dict[str, Any]] = []
    for (size, config), training in product(configs.items(), chosen.trainings):
        torch.compiler.reset()  # a kernel's recompilation limit counts over all models
        for row in measure_model(size, config, shapes, chosen.checkpointing, training, **options):
            harness.say(line_of(row))
            rows.append(row)
        release_memory(device)
    return result | {"rows": rows}


def line_of(row: Mapping[str, Any]) -> str:
    place = (
        f"{row['model']} {row['training']:4} {row.get('shape', ''):8} checkpointing {row.get('checkpointing', ''):3} "
    )
    if row["measured"] != "yes":
        return f"{place} {row.get('variant', ''):9} {row['measured']}"
    return (
        f"{place} {row['variant']:9} {row['ms']:10.2f} ms {row['pairs_per_s']:9.2f} pairs/s "
        f"{row['tokens_per_s']:10.1f} tokens/s  MFU {row['mfu']:.3f}  against padded {row['vs_padded']}  "
        f"peak GB {row['peak_gb']}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=CONFIGS, default=list(CONFIGS), help="Model sizes to measure; default: all.")
    add(
        "--trainings",
        nargs="+",
        choices=("lora", "full"),
        default=["lora", "full"],
        help="Train LoRA or all weights; default: both.",
    )
    add("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="Shapes of pairs to measure; default: all.")
    add(
        "--checkpointing",
        nargs="+",
        choices=("off", "on"),
        default=["off", "on"],
        help="Gradient checkpointing; default: both.",
    )
    add("--tokens", type=int, default=16384, help="Token budget of a bin; 0: only the pairs of the shape.")
    add("--rounds", type=int, default=5, help="Number of measured steps per variant; variants take turns.")
    add("--dry-run", action="store_true", help="Run every code path at tiny sizes for one round.")
    add("--json", action="store_true", help="Print one JSON object as the last line of stdout.")
    chosen = parser.parse_args()
    if chosen.dry_run:
        chosen.tokens, chosen.rounds = 0, 1
    elif not torch.cuda.is_available():
        parser.error("there is no CUDA device: add --dry-run to run every code path without one")
    return chosen


def main() -> None:
    chosen = arguments()
    # On a CPU, which a dry run may use, FlexAttention warns that it runs uncompiled.
    warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
    result = measure(chosen, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.json:
        harness.finish(result, as_json=True)


if __name__ == "__main__":
    main()
