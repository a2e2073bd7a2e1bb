"""Engines: the update is the same for every engine, split into bins and number of ranks.

The two-rank tests share one pair of processes, because starting them takes longer than all their steps.
"""

import faulthandler
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pft_core.encoding.batching import collate, empty_example
from pft_core.encoding.examples import BranchedExample
from pft_core.errors import UserError
from pft_core.policies.model import add_lora, load_base, save_adapter
from pft_core.policies.settings import LoraSettings
from pft_core.scoring.scorer import BranchScorer
from pft_core.training import checkpoint
from pft_core.training.engines.deepspeed_engine import deepspeed_config
from pft_core.training.engines.engine import AdamWEngine, NonFiniteError
from pft_core.training.engines.settings import EngineSettings, OptimizerSettings
from tests.builders import engine_of, random_trees

CPU = torch.device("cpu")
TORCH = ("torch", 0)
ENGINES = [TORCH, ("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)]
DEEPSPEED = ENGINES[1:]
LORA = LoraSettings(r=4, alpha=8, dropout=0.0, target_modules="all-linear")
LR = 1e-2
NUM_STEPS = 4
EXAMPLES = [random_trees(8, seed=step) for step in range(NUM_STEPS)]

# Another order of float32 sums changes a loss of 13 by a few 1e-6, and a weight by far less than the 1e-2 that one
# AdamW step moves it: AdamW divides by the gradient's own size, so it neither hides nor magnifies the difference much.
CURVE_TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 1e-4


def make_engine(
    folder: Path, name: str, stage: int, *, precision: str = "fp32", lora: bool = True, checkpointing: bool = False
) -> AdamWEngine:
    frozen = precision if lora else "fp32"
    model = load_base(str(folder), precision=frozen, gradient_checkpointing=checkpointing, device=CPU)  # type: ignore[arg-type]
    scorer = BranchScorer(add_lora(model, LORA, seed=1) if lora else model)
    optimizer = {"weight_decay": 0.01, "max_grad_norm": 0.5, "precision": precision}
    return engine_of(scorer, device=CPU, name=name, zero_stage=stage, **optimizer)  # type: ignore[return-value]


def run_bins(engine: AdamWEngine, bins: Sequence[Sequence[BranchedExample]], labels: Sequence[int]) -> float:
    """Run forward and backward for L = -sum_k sum(logps of side k) / N_k, with N_k the labels of side k in the whole
    step; return L."""
    total = 0.0
    for i, examples in enumerate(bins):
        batch = collate(examples)
        logps = engine(batch)
        loss = sum((-logps[batch.branch_side == k].sum() / labels[k] for k in (0, 1)), torch.zeros(()))
        engine.backward(loss, is_last=i == len(bins) - 1)
        total += loss.item()
    return total


def cut(examples: Sequence[BranchedExample], size: int) -> list[Sequence[BranchedExample]]:
    return [examples[i : i + size] for i in range(0, len(examples), size)]


def labels_of(step: int) -> list[int]:
    return [sum(b.num_labels for e in EXAMPLES[step] for b in e.branches if b.side == k) for k in (0, 1)]


def one_step(engine: AdamWEngine, step: int, *, size: int = 8) -> tuple[float, float]:
    return run_bins(engine, cut(EXAMPLES[step], size), labels_of(step)), engine.step(LR)


@pytest.fixture(scope="module")
def reference(tiny_qwen2: Path) -> tuple[list[tuple[float, float]], dict[str, Tensor]]:
    """Return losses, norms and final weights of the torch engine in one process, with one bin per step."""
    engine = make_engine(tiny_qwen2, *TORCH)
    return [one_step(engine, step) for step in range(NUM_STEPS)], engine.gathered_state()


def assert_same_run(
    curve: Sequence[tuple[float, float]], state: dict[str, Tensor], reference: tuple[Any, dict[str, Tensor]]
) -> None:
    assert torch.allclose(torch.tensor(curve), torch.tensor(reference[0]), rtol=0, atol=CURVE_TOLERANCE)
    assert state.keys() == reference[1].keys()
    assert max((state[k] - reference[1][k]).abs().max().item() for k in state) < WEIGHT_TOLERANCE


def test_the_torch_engine_is_plain_adamw_with_clipping(tiny_qwen2: Path, reference) -> None:
    model = make_engine(tiny_qwen2, *TORCH).scorer
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LR, weight_decay=0.01)
    for step in range(NUM_STEPS):
        batch = collate(EXAMPLES[step])
        logps = model(batch)
        loss = sum(-logps[batch.branch_side == k].sum() / labels_of(step)[k] for k in (0, 1))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        assert (loss.item(), norm.item()) == reference[0][step]
    # The norms are about 1, so clipping to 0.5 took effect.
    assert norm > 0.5
    assert all(torch.equal(a, b) for a, b in zip(weights, reference[1].values(), strict=True))


@pytest.mark.parametrize(("name", "stage"), DEEPSPEED)
def test_deepspeed_equals_torch(tiny_qwen2: Path, reference, name: str, stage: int) -> None:
    engine = make_engine(tiny_qwen2, name, stage)
    # The number of bins differs in every step: 1, 2, 4 and 8.
    curve = [one_step(engine, step, size=8 >> step) for step in range(NUM_STEPS)]
    assert_same_run(curve, engine.gathered_state(), reference)


@pytest.mark.parametrize("size", [4, 1])
def test_splitting_a_step_does_not_change_the_gradient(tiny_qwen2: Path, size: int) -> None:
    whole, parts = make_engine(tiny_qwen2, *TORCH), make_engine(tiny_qwen2, *TORCH)
    run_bins(whole, cut(EXAMPLES[0], 8), labels_of(0))
    run_bins(parts, cut(EXAMPLES[0], size), labels_of(0))
    for name, weight in whole.trained.items():
        assert weight.grad is not None
        assert parts.trained[name].grad is not None
        assert torch.allclose(weight.grad, parts.trained[name].grad, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(("name", "stage"), ENGINES)
def test_an_infinite_loss_stops_before_the_weights_change(tiny_qwen2: Path, name: str, stage: int) -> None:
    engine = make_engine(tiny_qwen2, name, stage)
    before = engine.gathered_state()
    batch = collate(EXAMPLES[0])
    # The gradient is finite, so the engine must check the loss itself.
    engine.backward(engine(batch).sum() + float("inf"), is_last=True)
    with pytest.raises(NonFiniteError):
        engine.step(LR)
    assert all(torch.equal(weight, before[key]) for key, weight in engine.gathered_state().items())


@pytest.mark.parametrize(("name", "stage"), ENGINES)
def test_an_infinite_gradient_stops_before_the_weights_change(tiny_qwen2: Path, name: str, stage: int) -> None:
    engine = make_engine(tiny_qwen2, name, stage)
    before = engine.gathered_state()
    score = engine(collate(EXAMPLES[0])).sum()
    # The square root of zero is zero, but its slope there is infinite.
    engine.backward((score - score.detach()).sqrt(), is_last=True)
    with pytest.raises(NonFiniteError):
        engine.step(LR)
    assert all(torch.equal(weight, before[key]) for key, weight in engine.gathered_state().items())


@pytest.mark.parametrize(("name", "stage"), ENGINES)
def test_full_fine_tuning_in_bf16_keeps_float32_weights(tiny_qwen2: Path, name: str, stage: int) -> None:
    torch_engine = make_engine(tiny_qwen2, *TORCH, precision="bf16", lora=False)
    engine = make_engine(tiny_qwen2, name, stage, precision="bf16", lora=False)
    curves = [[one_step(e, step) for step in range(2)] for e in (torch_engine, engine)]
    # Same bins, same autocast: only the order of float32 sums differs.
    assert torch.allclose(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=0, atol=CURVE_TOLERANCE)
    assert {w.dtype for w in engine.gathered_state().values()} == {torch.float32}


@pytest.mark.parametrize(("name", "stage"), [TORCH, ("deepspeed", 2), ("deepspeed", 3)])
def test_lora_in_bf16_stays_near_fp32(tiny_qwen2: Path, reference, name: str, stage: int) -> None:
    engine = make_engine(tiny_qwen2, name, stage, precision="bf16")
    frozen = {p.dtype for p in engine.scorer.parameters() if not p.requires_grad}
    curve = [one_step(engine, step) for step in range(NUM_STEPS)]
    assert frozen == {torch.bfloat16}
    assert {w.dtype for w in engine.gathered_state().values()} == {torch.float32}
    # bfloat16 has 8 significant bits: each rounding changes a value by up to 0.4%.
    assert torch.allclose(torch.tensor(curve), torch.tensor(reference[0]), rtol=0.01)


@pytest.mark.parametrize(("name", "stage"), [TORCH, ("deepspeed", 3)])
def test_gradient_checkpointing_changes_nothing_but_memory(tiny_qwen2: Path, reference, name: str, stage: int) -> None:
    engine = make_engine(tiny_qwen2, name, stage, checkpointing=True)
    curve = [one_step(engine, step, size=4) for step in range(NUM_STEPS)]
    assert_same_run(curve, engine.gathered_state(), reference)


def test_zero3_keeps_adapters_whole_and_partitions_the_base(tiny_qwen2: Path) -> None:
    engine = make_engine(tiny_qwen2, "deepspeed", 3)
    persistent = {n: p.ds_persist for n, p in engine.scorer.named_parameters()}
    assert all(persistent[n] for n in persistent if ".lora_" in n)
    assert not any(persistent[n] for n in persistent if "embed_tokens" in n or "base_layer.weight" in n)


@pytest.mark.parametrize(("name", "stage"), [TORCH, ("deepspeed", 3)])
def test_loading_another_adapters_files_is_refused(tiny_qwen2: Path, tmp_path: Path, name: str, stage: int) -> None:
    make_engine(tiny_qwen2, name, stage).save(tmp_path)
    engine = make_engine(tiny_qwen2, name, stage, lora=False)
    with pytest.raises(UserError, match="another model"):
        engine.load(tmp_path)


# Two ranks.


@contextmanager
def process_group(rank: int, rendezvous: Path) -> Iterator[None]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    yield
    dist.destroy_process_group()


def uneven_bins(rank: int, step: int) -> list[Sequence[BranchedExample]]:
    """Return a rank's bins: 3 + 1 + 1 pairs on rank 0, and 3 pairs, then two empty bins, on rank 1."""
    examples = EXAMPLES[step]
    idle = [empty_example()]
    return [examples[:3], examples[3:4], examples[4:5]] if rank == 0 else [examples[5:], idle, idle]


def two_rank_step(engine: AdamWEngine, rank: int, step: int) -> tuple[float, float]:
    share = torch.tensor(run_bins(engine, uneven_bins(rank, step), labels_of(step)))
    dist.all_reduce(share)
    return share.item(), engine.step(LR)


def save_separately_and_merge(folder: Path, *, engine: AdamWEngine, rank: int) -> Path:
    """Save each rank's files to a folder of its own, as on machines without a shared disk, and merge them."""
    local = folder.with_name(f"{folder.name}-of-rank-{rank}")
    checkpoint.save(local, engine=engine, progress={"steps_done": 2}, rank=rank, world_size=2)
    folder.mkdir(exist_ok=True)
    for item in local.iterdir():
        item.rename(folder / item.name)
    dist.barrier()
    return folder


def stopped_together(engine: AdamWEngine, rank: int) -> bool:
    """Return whether step() raises on this rank if only rank 1's loss is infinite and all gradients are finite."""
    loss = engine(collate(EXAMPLES[0])).sum() + (float("inf") if rank == 1 else 0.0)
    engine.backward(loss, is_last=True)
    try:
        engine.step(LR)
    except NonFiniteError:
        return True
    return False


def two_rank_program(rank: int, folder: Path, model: Path, engines: Sequence[tuple[str, int]]) -> None:
    """Train, save, resume and fail with every engine; exit as soon as the results are on disk.

    About one process in fifty was aborted (signal 6) at an unknown place. DeepSpeed's process-group threads can abort
    an interpreter that is shutting down, which is not ours to test, so the process skips the shutdown; an earlier
    abort prints its traceback.
    """
    faulthandler.enable()
    with process_group(rank, folder / "rendezvous"):
        for name, stage in engines:
            engine = make_engine(model, name, stage)
            curve = [two_rank_step(engine, rank, step) for step in range(2)]
            saved = save_separately_and_merge(folder / f"{name}{stage}", engine=engine, rank=rank)
            curve += [two_rank_step(engine, rank, step) for step in range(2, NUM_STEPS)]
            state = engine.gathered_state()
            if rank == 0:
                save_adapter(engine.scorer.model, state, folder / f"adapter-{name}{stage}")  # type: ignore[arg-type]

            resumed = make_engine(model, name, stage)
            progress = checkpoint.restore(saved, engine=resumed)
            resumed_curve = [two_rank_step(resumed, rank, step) for step in range(progress["steps_done"], NUM_STEPS)]
            resumed_state = resumed.gathered_state()
            stopped = stopped_together(resumed, rank)
            result = {"curve": curve, "state": state, "resumed_curve": resumed_curve, "resumed_state": resumed_state}
            torch.save(result | {"stopped": stopped}, folder / f"{name}{stage}-{rank}.pt")
    os._exit(0)


@pytest.fixture(scope="module")
def two_ranks(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the results of `two_rank_program` for every engine and rank."""
    folder = tmp_path_factory.mktemp("two_ranks")
    args = (folder, tiny_qwen2, ENGINES)
    context = torch.multiprocessing.spawn(two_rank_program, args=args, nprocs=2, join=False)
    deadline = time.monotonic() + 180
    while not context.join(timeout=5):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail("the two ranks did not finish in 180 s: they probably wait for each other")
    return folder


def results(folder: Path, name: str, stage: int) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{name}{stage}-{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize(("name", "stage"), ENGINES)
def test_two_ranks_with_uneven_bins_equal_one(two_ranks: Path, reference, name: str, stage: int) -> None:
    first, second = results(two_ranks, name, stage)
    assert_same_run(first["curve"], first["state"], reference)
    assert second["curve"] == first["curve"]
    assert second["state"] == {}


@pytest.mark.parametrize(("name", "stage"), ENGINES)
def test_two_ranks_resume_bitwise(two_ranks: Path, name: str, stage: int) -> None:
    first, _ = results(two_ranks, name, stage)
    assert first["resumed_curve"] == first["curve"][2:]
    assert first["state"].keys() == first["resumed_state"].keys()
    assert all(torch.equal(weight, first["resumed_state"][key]) for key, weight in first["state"].items())


@pytest.mark.parametrize(("name", "stage"), ENGINES)
def test_a_bad_loss_on_one_rank_stops_both(two_ranks: Path, name: str, stage: int) -> None:
    assert [result["stopped"] for result in results(two_ranks, name, stage)] == [True, True]


@pytest.mark.parametrize("lora", [True, False])
def test_zero_3_partitions_trained_weights_only_without_an_adapter(tiny_qwen2, lora: bool) -> None:
    model = load_base(str(tiny_qwen2), precision="fp32", gradient_checkpointing=False, device=CPU)
    scorer = BranchScorer(add_lora(model, LORA, seed=1) if lora else model)
    trained = [w for w in scorer.parameters() if w.requires_grad]
    settings = EngineSettings(name="deepspeed", zero_stage=3)
    optimizer = OptimizerSettings(precision="fp32")
    zero = deepspeed_config(settings, optimizer, trained=trained, scorer=scorer)["zero_optimization"]
    # DeepSpeed partitions weights with at least this many elements.
    threshold = zero.get("stage3_param_persistence_threshold", 0)
    assert all(w.numel() < threshold for w in trained) == lora
