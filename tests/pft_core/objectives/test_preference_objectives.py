"""DPO, IPO, SimPO and k-way losses: computed by hand, and compared with TRL's trainer on the same batch."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pft_core.encoding.batching import BranchedBatch, collate, empty_example
from pft_core.encoding.examples import BranchedExample, LabelCounts, select_sides
from pft_core.objectives.build import build_objective
from pft_core.objectives.objective import Objective
from pft_core.objectives.settings import ObjectiveSettings
from pft_core.policies.model import add_lora, load_base
from pft_core.policies.settings import LoraSettings
from pft_core.scoring.scorer import BranchScorer
from pft_core.training.reference import ReferencedStore
from tests.builders import MemoryStore, tree

CPU = torch.device("cpu")


def record_tree(number: int = 0) -> BranchedExample:
    """Return a record in the preference view: chosen and rejected under each side, with 2 and 1 label tokens."""
    first, second = [8 + number, 9], [10 + number]
    return tree("r", [[5, 6], [5, 6], [5, 7], [5, 7]], [first, second, second, first], sides=(0, 0, 1, 1))


# chosen, rejected under the first side; chosen, rejected under the second
LOGPS_R = torch.tensor([-1.0, -3.0, -2.0, -2.5])
REFERENCE_E4 = np.array([[-2.0, -2.0, -2.5, -1.0]], dtype=np.float32)
# log-ratios: (-1 + 2) - (-3 + 2) = 2 and (-2 + 2.5) - (-2.5 + 1) = 2
STORE = ReferencedStore(MemoryStore([record_tree()]), REFERENCE_E4)
BATCH = collate(STORE.read([0]))
COUNTS = STORE.label_counts([0])


def value(objective: Objective, logps_R: torch.Tensor = LOGPS_R) -> float:
    return objective.loss(objective.sums(logps_R, BATCH), objective.denominators(COUNTS)).item()


def means(objective: Objective) -> dict[str, float]:
    sums, denominators = objective.sums(LOGPS_R, BATCH), objective.denominators(COUNTS)
    return {t.name: float(s) / d for t, s, d in zip(objective.terms, sums, denominators, strict=True)}


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_dpo_is_the_weighted_sum_of_the_mean_over_each_sides_pairs() -> None:
    # -log sigmoid(0.5 * 2) = log(1 + e^-1) on both sides
    objective = build_objective(ObjectiveSettings(objective="dpo", alpha=2.0, beta=0.5, preference_beta=0.5))
    assert value(objective) == pytest.approx(2.5 * softplus(-1.0), rel=1e-6)


def test_one_sided_dpo_runs_only_the_pairs_of_its_side() -> None:
    objective = build_objective(ObjectiveSettings(objective="dpo:second", preference_beta=0.5))
    assert objective.phases == ((1,),)
    batch = collate([select_sides(example, (1,)) for example in STORE.read([0])])
    loss = objective.loss(objective.sums(LOGPS_R[2:], batch), objective.denominators(COUNTS))
    assert loss.item() == pytest.approx(softplus(-1.0), rel=1e-6)


def test_ipo_pulls_the_log_ratio_per_token_to_half_of_one_over_beta() -> None:
    # first: 1 / 2 tokens + 1 / 1 = 1.5, second: 0.5 / 1 + 1.5 / 2 = 1.25; 1 / 0.8 = 1.25: 0.25^2 + 0
    assert value(build_objective(ObjectiveSettings(objective="ipo", preference_beta=0.4))) == pytest.approx(0.0625)


def test_simpo_compares_means_per_token_and_reads_no_reference() -> None:
    # first: chosen -1 / 2, rejected -3 / 1: 2 * 2.5 - 1 = 4; second: chosen -2 / 1, rejected -2.5 / 2: 2 * -0.75 - 1
    objective = build_objective(ObjectiveSettings(objective="simpo", preference_beta=2.0, simpo_gamma=1.0))
    assert not objective.uses_reference
    assert value(objective) == pytest.approx(softplus(-4.0) + softplus(2.5), rel=1e-6)


def test_dpo_with_nll_adds_the_chosen_answers_loss_per_token() -> None:
    # chosen: -1 over 2 tokens, -2 over 1 token
    settings = ObjectiveSettings(objective="dpo_nll", preference_beta=0.5, nll_weight=0.25)
    assert value(build_objective(settings)) == pytest.approx(2 * softplus(-1.0) + 0.25 * (0.5 + 2.0), rel=1e-6)


def test_margins_and_displacement_are_reported_with_weight_zero() -> None:
    reported = means(build_objective(ObjectiveSettings(objective="dpo")))
    assert reported["log_ratio_first"] == reported["log_ratio_second"] == 2.0
    assert reported["ratio_accuracy_first"] == 1.0
    # chosen: -1 + 2 and -2 + 2.5; rejected: -3 + 2 and -2.5 + 1
    assert [reported[f"displacement_{side}"] for side in ("first", "second")] == [1.0, 0.5]
    assert [reported[f"rejected_displacement_{side}"] for side in ("first", "second")] == [-1.0, -1.5]


def test_paired_fine_tuning_reports_displacement_on_request() -> None:
    objective = build_objective(ObjectiveSettings(objective="pft"), reports_displacement=True)
    pair = tree("p", [[5, 6], [5, 7]], [[8], [9]])
    store = ReferencedStore(MemoryStore([pair]), np.array([[-2.0, -3.0]], dtype=np.float32))
    sums = objective.sums(torch.tensor([-1.5, -4.0]), collate(store.read([0])))
    values = dict(zip([t.name for t in objective.terms], sums.tolist(), strict=True))
    # -1.5 + 2 and -4 + 3
    assert (values["displacement_first"], values["displacement_second"]) == (0.5, -1.0)
    assert objective.uses_reference


def test_an_idle_ranks_pair_without_labels_adds_no_loss_and_no_gradient() -> None:
    objective = build_objective(ObjectiveSettings(objective="dpo"))
    logps = torch.zeros(2, requires_grad=True)
    sums = objective.sums(logps, collate([empty_example()]))
    assert sums.tolist() == [0.0] * len(objective.terms)
    objective.loss(sums, objective.denominators(COUNTS)).backward()
    assert logps.grad is not None
    assert not logps.grad.any()


def test_k_way_is_the_mean_over_axes_of_each_axis_paired_loss() -> None:
    # Axis 0: one example, labels 1 and 2; axis 1: two examples, labels (1, 1) and (3, 1).
    labels = np.array([[1, 2], [1, 1], [3, 1]])
    counts = LabelCounts(labels, np.array([0, 1]), np.array([0, 1, 1]))
    examples = [tree(str(i), [[5], [6]], [[8] * a, [9] * b]) for i, (a, b) in enumerate(labels.tolist())]
    axes = [0, 1, 1]
    batch = collate(
        [BranchedExample(e.id, e.prefix_ids, e.branches, axis) for e, axis in zip(examples, axes, strict=True)]
    )
    objective = build_objective(ObjectiveSettings(objective="k_way", alpha=1.0, beta=0.5), axes=("Risk", "Pace"))
    loss = objective.loss(
        objective.sums(torch.tensor([-1.0, -4.0, -2.0, -3.0, -6.0, -5.0]), batch), objective.denominators(counts)
    )
    # Risk: 1 / 1 + 0.5 * 4 / 2 = 2; Pace: (2 + 6) / 4 + 0.5 * (3 + 5) / 2 = 4; their mean is 3.
    assert loss.item() == pytest.approx(3.0)


def policy(folder) -> BranchScorer:
    base = load_base(str(folder), precision="fp32", gradient_checkpointing=False, device=CPU)
    model = add_lora(base, LoraSettings(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "v_proj"]), seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=generator)
    return BranchScorer(model)


def gradients(scorer: BranchScorer, loss: Callable[[], torch.Tensor]) -> torch.Tensor:
    scorer.zero_grad()
    loss().backward()
    return torch.cat([p.grad.flatten() for p in scorer.parameters() if p.requires_grad and p.grad is not None])


@pytest.mark.parametrize(("name", "loss_type"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_loss_gradients_and_margins_equal_trls_on_the_same_batch(tiny_qwen2, name, loss_type) -> None:
    from benchmarks.trl_step import dpo_trainer

    scorer = policy(tiny_qwen2)
    # TRL treats every token after the prompt as a label, so the whole prompt must be the prefix.
    pairs = [tree("r", [[5, 6]] * 2, [[8 + n, 9], [10 + n]], sides=(0, 0)) for n in range(4)]
    with torch.no_grad(), scorer.model.disable_adapter():
        reference = scorer(collate(pairs)).numpy().reshape(-1, 2)
    trainer, rows = dpo_trainer(
        scorer.model, pairs, reference=reference.reshape(-1).tolist(), beta=0.3, use_cpu=True, loss_type=loss_type
    )
    theirs = gradients(scorer, lambda: trainer.compute_loss(scorer.model, trainer.data_collator(rows)))
    loss = trainer.compute_loss(scorer.model, trainer.data_collator(rows)).item()
    margin = trainer._metrics["train"]["rewards/margins"][-1]

    store = ReferencedStore(MemoryStore(pairs), reference)
    batch: BranchedBatch = collate(store.read(range(4)))
    objective = build_objective(ObjectiveSettings(objective=name, preference_beta=0.3))
    counts = store.label_counts(range(4))
    ours = gradients(
        scorer, lambda: objective.loss(objective.sums(scorer(batch), batch), objective.denominators(counts))
    )
    sums = dict(zip([t.name for t in objective.terms], objective.sums(scorer(batch), batch).tolist(), strict=True))
    assert sums["loss_first"] / 4 == pytest.approx(loss, rel=1e-5)
    assert 0.3 * sums["log_ratio_first"] / 4 == pytest.approx(margin, rel=1e-5)
    assert torch.linalg.norm(ours - theirs) <= 1e-5 * torch.linalg.norm(theirs)
