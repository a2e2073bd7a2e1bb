"""The benchmark of a pretrained model measures what it says, on the embedded data and model."""

from pathlib import Path

import pytest
import torch

from benchmarks.real.evaluation import LEAST_GROUPS, alternate, evaluation_figures
from benchmarks.real.measuring import measure
from benchmarks.real.naive import answer_row_by_row, batches
from benchmarks.real.peak_memory import PeakMemory
from benchmarks.real.training import training_figures
from benchmarks.real.turns import take_turns
from pft_core.data import load_space
from pft_core.evaluation import AnswerSettings, Question, by_likelihood
from pft_core.policies import SHIPPED_BASE, load_policy, load_tokenizer
from pft_core.prompts import PromptStyle
from pft_core.scoring import BranchScorer
from pft_core.training.memory import probe_batch
from pipelines.config import RunConfig, load_config, with_precision
from pipelines.embedded_data import embedded_data, with_embedded
from tests.builders import record

KEYS = {
    "train_tokens_per_s", "train_peak_mb", "counted_mb", "vs_trl", "vs_trl_head_on_labels", "evaluate_items_per_s",
    "evaluate_vs_naive", "evaluate_208_s",
}  # fmt: skip


@pytest.fixture
def model() -> torch.nn.Module:
    return load_policy(str(SHIPPED_BASE), None, None, precision="fp32", device=torch.device("cpu"))


def test_scoring_row_by_row_gives_the_probabilities_of_our_scoring(model: torch.nn.Module) -> None:
    tokenizer, space = load_tokenizer(str(SHIPPED_BASE)), load_space("toyworld")
    axis = space.axes[0].name
    questions = [
        Question(record(i, axis=axis, num_options=2 + i % 3), "one", side) for i in range(6) for side in (0, 1)
    ]
    settings = AnswerSettings(PromptStyle("after", "option"), space, 512, tokens_per_batch=256, max_new_tokens=1)
    naive = answer_row_by_row(questions, model=model, tokenizer=tokenizer, settings=settings)
    ours = by_likelihood(questions, scorer=BranchScorer(model), tokenizer=tokenizer, settings=settings)
    for one, other in zip(naive, ours, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_a_batch_holds_as_many_padded_rows_as_the_budget_allows() -> None:
    rows = [(torch.zeros(n).numpy(), 1) for n in (3, 10, 4, 9, 40)]
    assert list(batches(rows, tokens_per_batch=20)) == [[4], [1, 3], [2, 0]]


class Worker:
    """Stands in for a training process whose steps get faster."""

    def __init__(self, seconds: list[float]):
        self._seconds = iter(seconds)

    def step(self) -> dict[str, float]:
        seconds = next(self._seconds)
        return {"seconds": seconds, "cpu_seconds": seconds / 2, "loss": 1.0, "tokens_per_s": 100.0, "peak_mb": 7.4}


def test_the_ratio_of_two_trainings_is_the_median_over_rounds_without_the_warm_up() -> None:
    workers = {"ours": Worker([9.0, 1, 1, 2]), "trl": Worker([9.0, 2, 3, 8]), "trl_head_on_labels": Worker([9.0] * 4)}
    steps = take_turns(workers, rounds=3, limit_s=60)
    figures = training_figures(RunConfig(name="x"), {"counted_mb": 5.2, "most_tokens_at_once": 10}, steps)
    assert figures["vs_trl"] == 3
    assert (figures["train_peak_mb"], figures["counted_mb"]) == (7, 5)
    assert figures["training"]["rounds"] == 3


def test_trainings_stop_after_two_rounds_if_their_time_is_used_up() -> None:
    steps = take_turns({"ours": Worker([1.0] * 9)}, rounds=8, limit_s=0)
    assert len(steps["ours"]) == 3


def test_our_evaluation_goes_on_alone_when_the_time_of_the_naive_one_is_used_up() -> None:
    def first(questions: list[Question]) -> list[frozenset[int]]:
        return [frozenset({0})] * len(questions)

    groups = [[(record(2 * i + j), "one") for j in range(2)] for i in range(4)]
    times, outcomes = alternate(groups, {"ours": first, "naive": first}, limit_s=60, naive_s=0)
    assert {name: len(own) for name, own in times.items()} == {"ours": 4, "naive": LEAST_GROUPS}
    assert evaluation_figures(times, outcomes, num_items=8)["evaluation"]["source_of_208"] == "measured"
    assert "from 8 items" in evaluation_figures(times, outcomes, num_items=208)["evaluation"]["source_of_208"]


def test_the_peak_counts_from_the_first_forward_of_a_scorer(model: torch.nn.Module) -> None:
    before = torch.ones(2**23)  # 32 MiB that do not count
    memory, scorer = PeakMemory(), BranchScorer(model)
    with torch.no_grad():
        scorer(probe_batch(2))
    held = torch.ones(2**24)  # 64 MiB
    del held
    assert 60 <= memory.mb() < 64 + 48  # the allocator had some of it
    assert before[0]


@pytest.mark.slow
def test_the_whole_benchmark_runs_on_the_embedded_model(tmp_path: Path) -> None:
    changes = {
        "storage": tmp_path,
        "engine.name": "torch",
        "train.pairs_per_step": 4,
        "train.max_steps": 3,
        "train.warmup_steps": 0,
        "scaling.num_workers": 1,
        "scaling.threads_per_worker": 1,
    }
    config = load_config("quickstart", [f"{key}={value}" for key, value in changes.items()])
    config = with_precision(with_embedded(config))
    test = embedded_data("toyworld", config, "validation")
    result = measure(config, test, tmp_path, num_items=208, train_s=0, evaluate_s=0, naive_s=0)
    assert result.keys() >= KEYS
    assert all(result[key] > 0 for key in KEYS)
    assert result["training"]["loss_deviation"] < 1e-5
    assert result["evaluation"]["same_choices"] == 1
