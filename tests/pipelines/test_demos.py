"""What a demonstration runs, and what is said before it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pft_core.data.sources.dilemmas import stored_rows
from pft_core.evaluation import YARDSTICKS
from pft_core.training import TrainSettings
from pipelines import cli, quickstart
from pipelines.config import load_config
from pipelines.demos import REAL, TINY


@pytest.mark.parametrize(("is_real", "demo"), [(False, TINY), (True, REAL)])
def test_the_option_real_picks_the_demonstration_and_its_recipe(
    is_real: bool, demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(quickstart, "run", lambda config, *, demo, fresh: ran.append((config.data, demo)))
    monkeypatch.setattr(cli, "print_table", lambda result: None)
    overrides = ["model=toyworld", "prompt.template=plain", f"storage={tmp_path}"]
    cli.quickstart.__wrapped__(overrides, real=is_real)
    assert ran == [(load_config(demo.recipe).data, demo)]


def test_the_real_demonstration_tests_as_many_items_as_its_note_says() -> None:
    counts = {part: len(list(stored_rows(split=split))) for split, part in REAL.tests.items()}
    assert counts == {"plain": 128, "twins": 128}
    assert "128 plain items and 128 twins" in REAL.note
    assert set(REAL.yardsticks) <= set(YARDSTICKS)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_steps": 440}, {"max_steps": 220}),
        ({"max_steps": 1}, {"max_steps": 1}),
        ({"epochs": 1}, {"max_steps": None, "epochs": 0.5}),
    ],
)
def test_a_share_is_that_of_the_steps_or_of_the_epochs(given: dict[str, Any], expected: dict[str, Any]) -> None:
    shortened = quickstart.shortened(TrainSettings(**given), 0.5)
    assert {key: getattr(shortened, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("override", "is_said"),
    [
        ("storage=here", True),
        ("tracking.uri=here", True),
        ("train.max_steps=1", False),
        ("scaling.use_gpu=true", False),
    ],
)
def test_an_estimate_is_said_only_of_the_recipe_as_it_is(
    override: str, is_said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    quickstart.say_duration(REAL, load_config(REAL.recipe, [override]))
    assert ("an estimated" in capsys.readouterr().err) == is_said


def test_the_rows_of_a_test_split_name_their_part() -> None:
    reports: Any = [{"rows": [{"policy": "base", "axis": "Risk"}]}]
    demo = replace(REAL, yardsticks=())
    rows = list(quickstart.rows_of(demo, "twins", reports, load_config(REAL.recipe), "unread"))
    assert rows == [{"policy": "base", "axis": "Risk (twins)", "part": "twins"}]
