"""The paper's released trainer, replayed (numbers in the folder that PFT_DATA's sibling `golden` holds)."""

import os
from pathlib import Path

import pytest

from tests.parity.golden import deviations, within_tolerance


@pytest.fixture(scope="module")
def golden() -> Path:
    root = os.environ.get("PFT_DATA")
    folder = Path(root or ".") / ".." / "golden" / "pft_reference"
    if not root or not folder.is_dir():
        pytest.skip("PFT_DATA is not set, or there is no golden folder beside it")
    return folder


def test_our_paired_loss_is_the_papers_paired_loss(golden) -> None:
    found = deviations(golden)
    assert within_tolerance(found), found


def test_not_a_number_never_counts_as_agreement() -> None:
    assert not within_tolerance({"loss": float("nan"), "grad_norm_rel": 0.0, "final_weights": 0.0, "initial_ce": 0.0})
