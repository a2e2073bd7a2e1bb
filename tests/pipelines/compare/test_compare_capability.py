"""The rows of general capability, from handmade answers."""

import pytest

from pft_core.errors import UserError
from pft_core.evaluation.tasks.capability import CapabilityAnswer
from pipelines.compare.statistics.capability_loss import capability_rows


def answered(*scores: float) -> list[CapabilityAnswer]:
    return [CapabilityAnswer(f"item-{n}", None, score, n % 4 == 0) for n, score in enumerate(scores)]


def test_the_rows_of_a_method_are_its_capability_and_its_drop() -> None:
    by_seed = {0: ("run-0", answered(1, 0, 0, 1)), 1: ("run-1", answered(0, 0, 0, 1))}
    after, lost = capability_rows("pft", None, before=answered(1, 1, 0, 1), by_seed=by_seed)
    # Accuracies 0.5 and 0.25, before 0.75; both have the standard deviation 0.25 / sqrt(2).
    for found, metric, mean, baseline in ((after, "capability", 0.375, 0.25), (lost, "capability_drop", 0.375, None)):
        low, high = found.pop("low"), found.pop("high")
        assert low <= mean <= high
        assert found == {
            "method": "pft", "axis": None, "pole": None, "metric": metric, "mean": mean,
            "sd": pytest.approx(0.25 / 2**0.5), "n_items": 4, "n_seeds": 2, "run_ids": ["run-0", "run-1"],
            "position_baseline": baseline, "variant": None,
        }  # fmt: skip


def test_what_was_not_trained_has_no_drop() -> None:
    (only,) = capability_rows("prompt_only", None, before=None, by_seed={0: ("run", answered(1, 0))})
    assert (only["metric"], only["mean"], only["sd"], only["n_seeds"]) == ("capability", 0.5, None, 1)


def test_rows_of_runs_on_other_items_are_refused() -> None:
    with pytest.raises(UserError, match="different capability items"):
        capability_rows("pft", None, before=answered(1, 0, 1), by_seed={0: ("run", answered(1, 0))})
    by_seed = {0: ("a", answered(1, 0)), 1: ("b", answered(1, 0, 1))}
    with pytest.raises(UserError, match="different capability items"):
        capability_rows("pft", None, before=None, by_seed=by_seed)
