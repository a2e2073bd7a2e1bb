"""Replays of the paper's released trainer (from the folder `golden` beside PFT_DATA) and of an independent trainer."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.parity.golden import deviations, within_tolerance
from tests.parity.two_pass import write_reference


@pytest.fixture(scope="module")
def golden() -> Path:
    root = os.environ.get("PFT_DATA")
    folder = Path(root or ".") / ".." / "golden" / "pft_reference"
    if not root or not folder.is_dir():
        pytest.skip("PFT_DATA is not set, or there is no golden folder beside it")
    return folder


def test_training_follows_the_papers_golden_trajectory(golden) -> None:
    largest = deviations(golden)
    assert within_tolerance(largest), largest


def test_nan_never_counts_as_agreement() -> None:
    assert not within_tolerance({"loss": float("nan"), "grad_norm_rel": 0.0, "final_weights": 0.0, "initial_ce": 0.0})


@pytest.mark.parametrize(
    ("alpha", "beta", "batch_size", "accumulation", "max_length"), [(0.7, 1.5, 3, 2, 45), (2.0, 0.25, 2, 4, 512)]
)
def test_training_matches_an_independent_two_pass_trainer(
    tiny_qwen2, tmp_path, alpha, beta, batch_size, accumulation, max_length
) -> None:
    settings = {
        "alpha": alpha,
        "beta": beta,
        "batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "max_length": max_length,
        "learning_rate": 2e-3,
        "weight_decay": 0.01,
        "warmup_steps": 2,
        "scheduler_total_steps": 9,
        "max_grad_norm": 1.0,
        "epochs": 2,
    }
    base = AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32)
    write_reference(tmp_path, base, settings, num_pairs=23, seed=4)
    largest = deviations(tmp_path)
    assert within_tolerance(largest), largest
