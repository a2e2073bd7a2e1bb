"""Files of outcomes: they read back as written, and anything else is an error that names the file."""

from pathlib import Path

import pytest

from pft_core.errors import UserError
from pft_core.evaluation.metrics.outcome import Outcome
from pft_core.evaluation.outcome_files import read_outcomes, write_outcomes

OUTCOMES = [
    Outcome("a", "Where\u2028to?", "Risk", "one", (0, 1), (frozenset({0}), None), frozenset({1})),
    Outcome("b", "When?", "Pace", "all", (0, 1, 0), (frozenset({0, 2}), frozenset())),
]


def test_outcomes_read_back_as_written(tmp_path: Path) -> None:
    assert read_outcomes(write_outcomes(tmp_path, OUTCOMES)) == OUTCOMES


def test_a_file_without_outcomes_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"outcomes\.jsonl: the outcomes of the run are missing"):
        read_outcomes(tmp_path / "outcomes.jsonl")
    for text in ("[1]\n", "{}\n", '{"cut": \n'):
        (tmp_path / "outcomes.jsonl").write_text(text)
        with pytest.raises(UserError, match=r"outcomes\.jsonl: not a file of outcomes"):
            read_outcomes(tmp_path / "outcomes.jsonl")
