import subprocess
import sys

import numpy as np
import pytest
import torch

from pft_core.encoding.batching import collate
from pft_core.encoding.examples import LabelCounts
from pft_core.objectives.nll import mixed_nll, one_sided_nll, paired_nll
from pft_core.objectives.registry import OBJECTIVES
from pft_core.objectives.settings import ObjectiveSettings
from tests.builders import tree

BATCH = collate([tree("a", [[5, 6], [5, 7]], [[8, 9], [8]]), tree("b", [[5, 6], [5, 7]], [[8], [8, 9, 10]])])
LOGPS_R = torch.tensor([-2.0, -1.0, -0.5, -6.0])  # first side: -2.0 and -0.5, second side: -1.0 and -6.0
COUNTS = LabelCounts(np.array([[2, 1], [1, 3]]), np.array([0, 1]), np.array([0, 0]))


def test_paired_loss_is_the_weighted_sum_of_the_sides_token_means() -> None:
    # first: (2.0 + 0.5) / 3 tokens, second: (1.0 + 6.0) / 4 tokens; 2 * 0.8333 + 0.5 * 1.75 = 2.541667
    objective = paired_nll(alpha=2.0, beta=0.5)
    loss = objective.loss(objective.sums(LOGPS_R, BATCH), objective.denominators(COUNTS))
    assert loss.item() == pytest.approx(2 * 2.5 / 3 + 0.5 * 7 / 4, abs=1e-6)


def test_swapping_the_sides_swaps_the_terms() -> None:
    swapped = collate([tree("a", [[5, 7], [5, 6]], [[8], [8, 9]]), tree("b", [[5, 7], [5, 6]], [[8, 9, 10], [8]])])
    sums = paired_nll(alpha=1, beta=1).sums(LOGPS_R, BATCH)
    assert paired_nll(alpha=1, beta=1).sums(LOGPS_R[[1, 0, 3, 2]], swapped).tolist() == sums.flip(0).tolist()


def test_mixed_loss_is_one_mean_over_all_label_tokens() -> None:
    # (2.0 + 1.0 + 0.5 + 6.0) / 7 tokens
    objective = mixed_nll()
    loss = objective.loss(objective.sums(LOGPS_R, BATCH), objective.denominators(COUNTS))
    assert loss.item() == pytest.approx(9.5 / 7, abs=1e-6)


def test_one_sided_training_never_runs_the_other_side() -> None:
    assert one_sided_nll(side=1).phases == ((1,),)
    assert [term.weight for term in one_sided_nll(side=1).terms] == [0.0, 1.0]


def test_the_asynchronous_update_has_one_phase_per_side() -> None:
    assert paired_nll(alpha=1, beta=1, update="asynchronous").phases == ((0,), (1,))


def test_a_term_without_labels_adds_nothing_instead_of_nan() -> None:
    objective = paired_nll(alpha=1.0, beta=1.0)
    assert objective.loss(torch.tensor([3.0, 0.0]), np.array([2.0, 0.0])).item() == 1.5


def test_an_unknown_objective_names_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"objective 'mixd' does not exist\. Did you mean 'mixed'"):
        ObjectiveSettings(objective="mixd")


@pytest.mark.parametrize(
    ("objective", "knob", "value"),
    [
        ("one_sided:first", "alpha", 2.0),
        ("pft", "simpo_gamma", 0.5),
        ("dpo:second", "alpha", 0.5),
        ("mixed", "beta", 0),
    ],
)
def test_a_knob_that_an_objective_does_not_use_is_an_error(objective: str, knob: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{knob}={float(value)} has no effect on objective={objective}"):
        ObjectiveSettings(objective=objective, **{knob: value})


def test_a_stored_config_that_lists_every_default_still_opens() -> None:
    for name in OBJECTIVES:
        assert ObjectiveSettings(**ObjectiveSettings(objective=name).model_dump()).objective == name


def test_an_objective_without_any_weight_is_refused() -> None:
    for settings in ({"alpha": 0, "beta": 0}, {"objective": "dpo:first", "alpha": 0}):
        with pytest.raises(ValueError, match="above 0"):
            ObjectiveSettings(**settings)


def test_another_objective_keeps_only_the_knobs_that_it_uses() -> None:
    settings = ObjectiveSettings(objective="simpo", alpha=2.0, preference_beta=2.0, simpo_gamma=0.5)
    changed = settings.with_objective("dpo")
    assert changed == ObjectiveSettings(objective="dpo", alpha=2.0, preference_beta=2.0)


def test_objectives_are_built_without_torch() -> None:
    code = (
        "import sys\nfrom pft_core.objectives import OBJECTIVES, ObjectiveSettings, build_objective\n"
        "for name in OBJECTIVES: build_objective(ObjectiveSettings(objective=name), axes=['Risk'])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
