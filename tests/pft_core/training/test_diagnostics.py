"""The gradient cosine equals the one computed from each side's gradient separately."""

from pathlib import Path

import pytest
import torch

from pft_core.objectives.build import build_objective
from pft_core.objectives.settings import ObjectiveSettings
from pft_core.policies.model import load_base
from pft_core.scoring.scorer import BranchScorer
from pft_core.training.diagnostics import gradient_cosine
from pft_core.training.engines.settings import EngineSettings, OptimizerSettings
from pft_core.training.engines.torch_engine import TorchEngine
from pft_core.training.order import DataOrder
from pft_core.training.planning import Update, step_updates
from tests.builders import MemoryStore, loop_settings, random_trees, tree

CPU = torch.device("cpu")


def engine(folder: Path) -> TorchEngine:
    base = load_base(str(folder), precision="fp32", gradient_checkpointing=False, device=CPU)
    return TorchEngine(BranchScorer(base), EngineSettings(), OptimizerSettings(precision="fp32"), device=CPU)


def updates(store: MemoryStore, objective, *, tokens: int = 10_000) -> list[Update]:
    settings = loop_settings(
        objective,
        DataOrder(len(store), seed=0),
        total_pairs=len(store),
        schedule_steps=1,
        pairs_per_step=len(store),
        tokens_per_microbatch=tokens,
    )
    return step_updates(0, settings=settings, store=store, rank=0, num_ranks=1)


@pytest.mark.parametrize("tokens", [10_000, 60])
def test_the_cosine_equals_that_of_gradients_computed_one_side_at_a_time(tiny_qwen2, tokens) -> None:
    objective = build_objective(ObjectiveSettings(objective="pft", alpha=1.0, beta=0.5))
    store, torch_engine = MemoryStore(random_trees(4)), engine(tiny_qwen2)
    cosine = gradient_cosine(updates(store, objective, tokens=tokens), objective=objective, engine=torch_engine)
    gradients = []
    for settings in (
        ObjectiveSettings(objective="pft", alpha=1.0, beta=0.0),
        ObjectiveSettings(objective="pft", alpha=0.0, beta=0.5),
    ):
        alone = build_objective(settings)
        (update,) = updates(store, alone)
        torch_engine.scorer.zero_grad()
        torch_engine.scorer.eval()
        alone.loss(alone.sums(torch_engine(update.batches[0]), update.batches[0]), update.denominators[0]).backward()
        gradients.append(torch.cat([w.grad.flatten() for w in torch_engine.trained.values()]))
    want = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert cosine == pytest.approx(float(want), abs=1e-5)
    assert abs(cosine) < 0.99


def test_equal_sides_have_cosine_one_and_a_missing_side_has_none(tiny_qwen2) -> None:
    same = MemoryStore([tree("a", [[5, 6, 7]] * 2, [[9, 10]] * 2)])
    objective = build_objective(ObjectiveSettings(objective="pft"))
    cosine = gradient_cosine(updates(same, objective), objective=objective, engine=engine(tiny_qwen2))
    assert cosine == pytest.approx(1.0, abs=1e-5)  # a float32 sum over all weights
    one_sided = build_objective(ObjectiveSettings(objective="one_sided:first"))
    assert gradient_cosine(updates(same, one_sided), objective=one_sided, engine=engine(tiny_qwen2)) is None
