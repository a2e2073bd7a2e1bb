"""The estimate of activation memory, and the choices that depend on it."""

import gc
import re
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from pft_core.encoding.batching import collate
from pft_core.objectives.build import build_objective
from pft_core.policies.model import add_lora, checkpoint_activations, load_base
from pft_core.policies.settings import LoraSettings
from pft_core.scoring.scorer import BranchScorer
from pft_core.training import memory
from pft_core.training.local_context import LocalContext
from pft_core.training.memory import count_kept_bytes, measure_kept_bytes, memory_errors, plan_memory, probe_batch
from pft_core.training.memory_fallback import MemoryFallback, MemoryUse, OutOfMemoryError, out_of_memory
from pft_core.training.planning import LoopSettings
from pft_core.training.settings import TrainSettings
from pipelines.train.fitting import plan_and_save_memory
from tests.builders import MemoryStore, tree

CPU = torch.device("cpu")
LORA = LoraSettings(r=4, alpha=8, dropout=0.1, target_modules="all-linear")


def scorer(folder: Path, *, backend: str = "split", precision: str = "fp32", lora: bool = True) -> BranchScorer:
    chosen: Any = precision if lora else "fp32"
    base = load_base(str(folder), precision=chosen, gradient_checkpointing=False, device=CPU)
    return BranchScorer(add_lora(base, LORA, seed=0) if lora else base, backend=backend)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def wide_qwen2(tmp_path_factory) -> Path:
    """Return a model wide enough for its layers to outweigh masks and logits, as in a real model."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 2}
    folder = tmp_path_factory.mktemp("wide")
    Qwen2ForCausalLM(Qwen2Config(vocab_size=600, num_hidden_layers=3, **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("backend", ["split", "separate"])
def test_the_estimate_holds_at_a_larger_size_and_another_shape(wide_qwen2, backend, lora, precision) -> None:
    chosen = scorer(wide_qwen2, backend=backend, precision=precision, lora=lora)
    estimate = measure_kept_bytes(chosen, precision=precision, device=CPU)
    pairs = [tree(str(i), [[5] * (120 + i)] * 2, [[6] * 22, [7] * (14 + i)]) for i in range(6)]
    for batch in (probe_batch(7), collate(pairs)):
        counted = count_kept_bytes(chosen, batch, precision=precision)
        assert estimate.of(chosen.count_tokens(batch)[1]) == pytest.approx(counted, rel=0.1)


def test_every_kept_storage_is_counted_once_without_the_weights() -> None:
    # x * w keeps both, exp keeps its result, and view(-1) * 1 keeps nothing: 8 float32 numbers of x, and 8 of exp.
    class Scorer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8))

        def forward(self, batch) -> torch.Tensor:
            product = torch.arange(8.0) * self.weight
            return product.exp().view(-1) * 1

    assert count_kept_bytes(Scorer(), probe_batch(2), precision="fp32") == 8 * 4 + 8 * 4  # type: ignore[arg-type]


@pytest.mark.parametrize("lora", [True, False])
def test_gradient_checkpointing_lowers_the_kept_bytes(tiny_llama, lora) -> None:
    chosen = scorer(tiny_llama, lora=lora)
    kept = measure_kept_bytes(chosen, precision="fp32", device=CPU)
    checkpoint_activations(chosen.model)
    # Each of the two layers keeps one input of width 32, instead of a dozen tensors of widths 32 and 64.
    assert measure_kept_bytes(chosen, precision="fp32", device=CPU).per_token < kept.per_token / 5


def test_counting_changes_no_random_state_mode_or_gradient(tiny_qwen2) -> None:
    chosen = scorer(tiny_qwen2).eval()
    torch.manual_seed(3)
    want = torch.rand(4)
    torch.manual_seed(3)
    plan_memory(chosen, num_tokens=100, precision="fp32", device=CPU)
    assert torch.equal(torch.rand(4), want)
    assert not chosen.training
    assert all(weight.grad is None for weight in chosen.parameters())


def test_needed_memory_includes_gradients_and_adamw_moments(tiny_qwen2) -> None:
    full = scorer(tiny_qwen2, lora=False)
    needed = plan_memory(full, num_tokens=0, precision="fp32", device=CPU).needed
    assert needed == pytest.approx(12 * sum(w.numel() for w in full.parameters()), rel=0.01)


def plan_with_fallback(
    scorer, tmp_path, memory_fallback=MemoryFallback.PLANNED, *, longest=40, **train
) -> tuple[LoopSettings, MemoryUse]:
    chosen = TrainSettings(**{"tokens_per_microbatch": 4096, "precision": "fp32", "pairs_per_step": 1000, **train})
    objective = build_objective(chosen)
    settings = LoopSettings.of(chosen, objective, num_pairs=200, seed=0, shares_prefix=True)
    store = MemoryStore([tree(str(i), [[5] * longest] * 2, [[6] * 8, [7] * 4]) for i in range(200)])
    return plan_and_save_memory(scorer, settings, store, memory_fallback, context=LocalContext(tmp_path, device=CPU))


@pytest.mark.parametrize(("free", "checkpoints"), [(1e12, False), (0.0, True)])
def test_auto_chooses_by_the_free_memory_and_says_why(tiny_qwen2, tmp_path, monkeypatch, free, checkpoints) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    chosen = scorer(tiny_qwen2)
    _, use = plan_with_fallback(chosen, tmp_path)
    assert chosen.model.get_base_model().is_gradient_checkpointing is checkpoints
    assert use.memory_fallback == (MemoryFallback.RECOMPUTED if checkpoints else MemoryFallback.PLANNED)
    assert re.search(r"up to 4096 tokens at once need about \S+ GB besides the weights, and \S+ GB were free", str(use))


def test_each_fallback_saves_more_until_the_settings_allow_no_other(tiny_qwen2, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1e12)
    seen = []
    memory_fallback: MemoryFallback | None = MemoryFallback.PLANNED
    while memory_fallback is not None:
        settings, use = plan_with_fallback(scorer(tiny_qwen2), tmp_path, memory_fallback)
        seen.append((use.memory_fallback.name, settings.train.tokens_per_microbatch, use.tokens_at_once))
        memory_fallback = use.next(settings.train)
    # Each pair has 40 + 8 + 4 tokens, and as many as fit run at once.
    assert seen == [("PLANNED", 4096, 4096), ("RECOMPUTED", 4096, 4096), ("HALVED", 2048, 2048)]


@pytest.mark.parametrize(
    ("train", "at", "then"),
    [
        ({"gradient_checkpointing": False}, MemoryFallback.PLANNED, None),
        ({"gradient_checkpointing": True}, MemoryFallback.PLANNED, None),
        ({"tokens_per_microbatch": 80}, MemoryFallback.RECOMPUTED, None),  # half of it does not hold a pair of 52
        ({"normalization": "micro_batch", "pairs_per_microbatch": 4}, MemoryFallback.RECOMPUTED, None),
        (
            {"normalization": "micro_batch", "pairs_per_microbatch": 4},
            MemoryFallback.PLANNED,
            MemoryFallback.RECOMPUTED,
        ),
    ],
)
def test_fallbacks_never_override_explicit_settings(tiny_qwen2, tmp_path, monkeypatch, train, at, then) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1e12)
    settings, use = plan_with_fallback(scorer(tiny_qwen2), tmp_path, at, **train)
    assert use.next(settings.train) == then
    assert str(out_of_memory(use, settings.train)).startswith(f"out of memory: up to {use.tokens_at_once} tokens")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_one_error_that_says_what_to_set(error) -> None:
    use = MemoryUse(MemoryFallback.PLANNED, 9e9, 4e9, tokens_at_once=4096, longest_pair_tokens=300)
    message = (
        "out of memory: up to 4096 tokens at once need about 9 GB besides the weights, and 4 GB were free: set "
        "train.gradient_checkpointing=auto, lower train.tokens_per_microbatch to 2048 (the longest pair has 300 "
        "tokens), or give each worker more memory"
    )
    with (
        pytest.raises(OutOfMemoryError, match=re.escape(message)),
        memory_errors(use, TrainSettings(gradient_checkpointing=False)),
    ):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(use, TrainSettings()):
        raise RuntimeError("shapes do not fit")


def test_a_containers_memory_limit_counts_if_it_is_tighter_than_the_machines(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    assert memory.container_bytes() == float("inf")
    for name, text in {"max": "1000000", "current": "700000", "stat": "anon 5\ninactive_file 200000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory.free_bytes(CPU) == 500_000  # 1,000,000 - 700,000 + 200,000 of file cache
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.container_bytes() == float("inf")


def test_all_ranks_plan_for_the_tightest_rank(tiny_qwen2, monkeypatch) -> None:
    # This rank has 3 GB free and needs megabytes; the other has 2 GB free and needs 5 GB. Both plan with 5 and 2.
    other = torch.tensor([-5e9, 2e9], dtype=torch.float64)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 3e9)
    monkeypatch.setattr(memory, "num_ranks", lambda: 2)
    monkeypatch.setattr(memory.dist, "all_reduce", lambda mine, op: mine.copy_(torch.minimum(mine, other)))
    plan = plan_memory(scorer(tiny_qwen2), num_tokens=100, precision="fp32", device=CPU)
    assert (plan.needed, plan.free, plan.fits) == (5e9, 2e9, False)


def test_a_worker_gets_its_share_of_the_machine(monkeypatch) -> None:
    alone = memory.free_bytes(CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free_bytes(CPU) == pytest.approx(alone / 4, rel=0.3)


def test_counting_frees_the_tensors_it_kept(wide_qwen2) -> None:
    chosen = scorer(wide_qwen2)
    outputs = []
    layer = chosen.model.get_base_model().model.layers[0]
    layer.register_forward_hook(lambda _, __, output: outputs.append(weakref.ref(output)))
    count_kept_bytes(chosen, probe_batch(2), precision="fp32")
    gc.collect()
    assert [ref() for ref in outputs] == [None]


@pytest.mark.slow
def test_training_thirty_layers_takes_little_more_than_the_estimate() -> None:
    counted, peak = printed_numbers(Path(__file__).with_name("peak_memory.py"))
    # With glibc's own threshold the peak is 1.6 times the estimate.
    assert counted < peak <= 1.5 * counted


def test_large_tensors_are_returned_to_the_system_between_small_ones_that_stay() -> None:
    script = """
import re, torch
from pft_core.training.allocator import map_large_blocks
map_large_blocks()
resident = lambda: int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
torch.ones(2**20)  # 4 MB: by default, freeing it raises glibc's threshold, and all later ones lie in its heap
before, small, large = resident(), [], []
for _ in range(64):
    large.append(torch.ones(2**19))
    small.append(torch.ones(2**10))
held = resident() - before
large.clear()
print(held, resident() - before)
"""
    held, left = printed_numbers("-c", script)
    assert held > 64 * 2**21 > 10 * left


def printed_numbers(*arguments: str | Path) -> list[float]:
    ran = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return [float(word) for word in ran.stdout.split()]


@pytest.mark.parametrize("num_positions", [32, 64])
def test_the_probe_fits_a_model_with_few_positions(num_positions: int) -> None:
    config = GPT2Config(vocab_size=50, n_positions=num_positions, n_embd=16, n_layer=2, n_head=2)
    kept = measure_kept_bytes(BranchScorer(GPT2LMHeadModel(config)), precision="fp32", device=CPU)
    assert kept.per_token > 0
