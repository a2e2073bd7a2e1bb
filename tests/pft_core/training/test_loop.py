"""The training loop on the plain torch engine, without Ray."""

import contextlib
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pft_core.errors import UserError
from pft_core.objectives.nll import mixed_nll, one_sided_nll, paired_nll
from pft_core.policies.model import add_lora, load_base
from pft_core.policies.settings import LoraSettings
from pft_core.scoring.scorer import BranchScorer
from pft_core.training.engines.engine import NonFiniteError
from pft_core.training.local_context import LocalContext
from pft_core.training.loop import FitResult, fit, lr_at
from pft_core.training.order import DataOrder
from pft_core.training.planning import LoopSettings, plan_phase
from tests.builders import MemoryStore, engine_of, loop_settings, random_trees, varied

STORE = MemoryStore(random_trees(12))
CPU = torch.device("cpu")
SETTINGS = loop_settings(
    paired_nll(alpha=1.0, beta=0.5),
    DataOrder(len(STORE), seed=3),
    total_pairs=30,
    schedule_steps=4,
    seed=5,
    pairs_per_step=8,
    tokens_per_microbatch=10_000,
    lr=1e-2,
    warmup_steps=1,
)


class Interrupted(Exception):
    """Simulates a kill between two steps."""


class Recorder:
    """Records the metrics of each step, and stops the run after the step `stop_after`."""

    def __init__(self, stop_after: int | None = None):
        self.metrics: dict[int, dict[str, float]] = {}
        self.stop_after = stop_after

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        self.metrics[step] = metrics
        if step == self.stop_after:
            raise Interrupted


def run(model_dir: Path, folder: Path, settings: LoopSettings = SETTINGS, *, stop_after=None, store=STORE, **kwargs):
    """Train a rank-4 adapter with dropout; return its weights, the metrics per step, and the result of fit()."""
    base = load_base(str(model_dir), precision="fp32", gradient_checkpointing=False, device=CPU)
    model = add_lora(base, LoraSettings(r=4, alpha=8, dropout=0.1, target_modules=["q_proj", "v_proj"]), seed=1)
    engine = engine_of(BranchScorer(model), device=CPU)
    recorder = Recorder(stop_after)
    context = LocalContext(folder, device=CPU, log=recorder)
    result: FitResult | None = None
    with contextlib.suppress(Interrupted):
        result = fit(settings, store=store, engine=engine, context=context, save_policy=lambda *_: None, **kwargs)
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    return weights, recorder.metrics, result


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_an_interrupted_run_continues_bitwise(tiny_qwen2, tmp_path) -> None:
    settings = varied(SETTINGS, checkpoint_every=2)
    whole, metrics, _ = run(tiny_qwen2, tmp_path / "whole", settings)
    run(tiny_qwen2, tmp_path / "cut", settings, stop_after=3)
    resumed, later, result = run(tiny_qwen2, tmp_path / "cut", settings)
    assert result.resumed_from == 2
    assert sorted(later) == [3, 4]
    assert [later[s]["loss_first"] for s in (3, 4)] == [metrics[s]["loss_first"] for s in (3, 4)]
    assert same(whole, resumed)


def test_a_damaged_checkpoint_is_skipped_for_the_previous_one(tiny_qwen2, tmp_path) -> None:
    settings = varied(SETTINGS, checkpoint_every=1)
    run(tiny_qwen2, tmp_path, settings, stop_after=4)
    victim = next(p for p in (tmp_path / "checkpoint-00000003").rglob("*") if p.is_file() and p.name != "MANIFEST.json")
    victim.write_bytes(victim.read_bytes()[:-1])
    *_, result = run(tiny_qwen2, tmp_path, settings)
    assert result.resumed_from == 2


def test_splitting_a_step_into_bins_never_changes_the_update(tiny_qwen2, tmp_path) -> None:
    # One bin, then bins of two pairs or one. Dropout is off, because its draws depend on the bins.
    losses = []
    for budget in (10_000, 120, 60):
        settings = varied(SETTINGS, tokens_per_microbatch=budget, total_pairs=16)
        _, metrics, _ = run_without_dropout(tiny_qwen2, tmp_path / str(budget), settings)
        losses.append([metrics[s][k] for s in (1, 2) for k in ("loss_first", "loss_second", "grad_norm")])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-5)  # float32 sums in another order


def run_without_dropout(model_dir, folder, settings, *, max_grad_norm=1.0):
    base = load_base(str(model_dir), precision="fp32", gradient_checkpointing=False, device=CPU)
    model = add_lora(base, LoraSettings(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "v_proj"]), seed=1)
    engine = engine_of(BranchScorer(model), device=CPU, max_grad_norm=max_grad_norm)
    recorder = Recorder()
    context = LocalContext(folder, device=CPU, log=recorder)
    result = fit(settings, store=STORE, engine=engine, context=context, save_policy=lambda *_: None)
    return model, recorder.metrics, result


def update_of(model_dir, folder, alpha: float, beta: float) -> torch.Tensor:
    """Return the change of the weights in ten steps as one vector; every step clips its gradients."""
    objective = paired_nll(alpha=alpha, beta=beta)
    settings = varied(SETTINGS, objective=objective, total_pairs=80, warmup_steps=0, schedule_steps=10)
    model, metrics, _ = run_without_dropout(model_dir, folder, settings, max_grad_norm=0.1)
    assert min(row["grad_norm"] for row in metrics.values()) > 0.1
    untouched, _, _ = run_without_dropout(model_dir, folder / "none", varied(settings, lr=0.0), max_grad_norm=0.1)
    pairs = zip(model.parameters(), untouched.parameters(), strict=True)
    return torch.cat([(after - before).detach().flatten() for after, before in pairs if after.requires_grad])


def test_only_the_ratio_of_alpha_and_beta_matters(tiny_qwen2, tmp_path) -> None:
    weights = [(1, 1), (2, 2), (10, 10), (1, 0.5)]
    one, two, ten, half = (update_of(tiny_qwen2, tmp_path / f"{a}-{b}", a, b) for a, b in weights)
    # Clipping removes the scale; the remaining difference is AdamW's epsilon (1e-8) next to gradients of 1e-4 and more.
    for scaled in (two, ten):
        assert (scaled - one).norm() / one.norm() < 1e-3
    assert (half - one).norm() / one.norm() > 0.05


def test_one_sided_training_reports_only_its_side(tiny_qwen2, tmp_path) -> None:
    _, metrics, _ = run(tiny_qwen2, tmp_path, varied(SETTINGS, objective=one_sided_nll(side=1), total_pairs=8))
    assert "loss_second" in metrics[1]
    assert "loss_first" not in metrics[1]


@pytest.mark.parametrize("update", ["synchronous", "asynchronous"])
def test_a_side_with_weight_zero_does_not_run(tiny_qwen2, tmp_path, update) -> None:
    weightless = varied(SETTINGS, objective=paired_nll(alpha=0.0, beta=1.0, update=update))
    alone = varied(SETTINGS, objective=one_sided_nll(side=1))
    paired, metrics, _ = run(tiny_qwen2, tmp_path / "paired", weightless)
    single, expected, _ = run(tiny_qwen2, tmp_path / "alone", alone)
    assert "loss_first" not in metrics[1]
    assert metrics[1]["loss_second"] == expected[1]["loss_second"]
    assert same(paired, single)


def test_validation_reports_a_side_that_is_not_trained(tiny_qwen2, tmp_path) -> None:
    settings = varied(SETTINGS, objective=paired_nll(alpha=0.0, beta=1.0), total_pairs=8)
    _, metrics, _ = run(tiny_qwen2, tmp_path, settings, validation=STORE)
    assert metrics[1]["val_loss"] == pytest.approx(metrics[1]["val_loss_second"])
    assert metrics[1]["val_loss_first"] > 0


def test_the_asynchronous_update_computes_the_second_gradient_at_the_updated_weights(tiny_qwen2, tmp_path) -> None:
    # The first step trains the first side, then the second. The second side's loss differs from the synchronous one,
    # which is computed before any update.
    settings = varied(SETTINGS, warmup_steps=0, total_pairs=8, schedule_steps=1)
    _, together, _ = run_without_dropout(tiny_qwen2, tmp_path / "sync", settings)
    asynchronous = varied(settings, objective=paired_nll(alpha=1.0, beta=0.5, update="asynchronous"))
    _, apart, _ = run_without_dropout(tiny_qwen2, tmp_path / "async", asynchronous)
    assert apart[1]["loss_first"] == pytest.approx(together[1]["loss_first"], rel=1e-6)
    assert abs(apart[1]["loss_second"] - together[1]["loss_second"]) > 1e-4


def test_validation_reports_the_weighted_loss(tiny_qwen2, tmp_path) -> None:
    settings = varied(SETTINGS, validate_every=2, total_pairs=16, objective=mixed_nll())
    _, metrics, _ = run(tiny_qwen2, tmp_path, settings, validation=MemoryStore(random_trees(5, seed=9)))
    assert "val_loss" not in metrics[1]
    assert metrics[2]["val_loss"] == pytest.approx(metrics[2]["val_loss"], rel=1e-6)


def test_a_non_finite_loss_stops_before_the_step_and_names_step_and_examples(tiny_qwen2, tmp_path) -> None:
    objective = SETTINGS.objective

    def poisoned(logps, batch):
        return objective.sums(logps, batch) * (float("inf") if "pair-7" in batch.example_ids else 1.0)

    step = next(s for s in itertools.count() if 7 in STEP_INDICES[s])
    with pytest.raises(
        NonFiniteError, match=rf"step {step + 1} .*examples (pair-\d+, ){{2}}pair-\d+ and 5 more;"
    ) as caught:
        run(tiny_qwen2, tmp_path, varied(SETTINGS, objective=replace(objective, sums=poisoned)))
    assert "pair-7" in caught.value.example_ids


def test_a_non_finite_gradient_names_the_step_its_rate_and_the_last_gradient_norm(tiny_qwen2, tmp_path) -> None:
    objective = SETTINGS.objective
    calls = itertools.count()

    def steep(logps, batch):
        sums = objective.sums(logps, batch)
        # The square root of zero is zero, but its slope there is infinite.
        return sums if next(calls) < 1 else sums + (logps.sum() - logps.sum().detach()).sqrt()

    settings = varied(SETTINGS, objective=replace(objective, sums=steep), tokens_per_microbatch=4096)
    with pytest.raises(
        NonFiniteError,
        match=r"^step 2 \(train.lr=[\d.e-]+, at this step [\d.e-]+, grad_norm of the step before [\d.]+\): "
        "a gradient is not finite; this update changed no weight$",
    ):
        run(tiny_qwen2, tmp_path, settings)


STEP_INDICES = [SETTINGS.order.step_indices(s, examples_per_step=8, total_examples=30) for s in range(4)]


def test_all_ranks_run_the_same_number_of_bins_and_each_pair_once() -> None:
    settings = varied(SETTINGS, tokens_per_microbatch=80)
    indices = [0, 3, 5, 6, 7]
    phase = plan_phase(indices, (0, 1), settings=settings, store=STORE, num_ranks=3)
    assert len({len(rank_bins) for rank_bins in phase.bins}) == 1
    assert sorted(i for rank_bins in phase.bins for b in rank_bins for i in b) == indices


def test_pairs_are_cut_into_micro_batches_before_they_are_dealt_to_ranks() -> None:
    # 5 pairs in micro-batches of 2: (0, 1), (2, 3), (4). A full step of 8 pairs has 4 of them, so means divide by 4.
    settings = varied(SETTINGS, pairs_per_microbatch=2)
    phase = plan_phase([0, 1, 2, 3, 4], (0, 1), settings=settings, store=STORE, num_ranks=2)
    assert phase.bins == [[[0, 1], [4]], [[2, 3], []]]
    for rank in (0, 1):
        for items, denominators in zip(phase.bins[rank], phase.denominators[rank], strict=True):
            assert denominators.tolist() == (4 * STORE.label_counts(items).num_labels_EB.sum(axis=0)).tolist()


def test_the_learning_rate_warms_up_from_zero_and_decays_to_zero() -> None:
    settings = varied(SETTINGS, lr=1.0, warmup_steps=2, schedule_steps=6)
    assert [lr_at(s, settings) for s in range(7)] == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    cosine = varied(settings, schedule="cosine")
    assert [round(lr_at(s, cosine), 6) for s in (2, 4, 6)] == [1.0, 0.5, 0.0]


def test_a_pair_over_the_token_budget_is_refused_before_the_first_step(tiny_qwen2, tmp_path) -> None:
    longest = max(STORE.num_tokens(range(len(STORE)), sides=(0, 1), shares_prefix=True))
    settings = varied(SETTINGS, tokens_per_microbatch=longest - 1)
    with pytest.raises(UserError, match=rf"tokens_per_microbatch={longest - 1} .* raise it to {longest}"):
        run(tiny_qwen2, tmp_path, settings)
