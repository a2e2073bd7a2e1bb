"""Registries check an entry when it is registered, and its code when it is used."""

from collections.abc import Callable
from typing import Any

import pytest

from pft_core.data.sources.registry import SOURCES, SourceEntry
from pft_core.errors import UserError
from pft_core.evaluation.metrics.metric import Metric
from pft_core.evaluation.metrics.registry import METRICS
from pft_core.evaluation.tasks.task import Task
from pft_core.evaluation.yardsticks.registry import Yardstick
from pft_core.objectives.registry import OBJECTIVES, ObjectiveEntry
from pft_core.registry import load_code
from pft_core.training.engines.registry import EngineEntry


def test_an_entry_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="source 'mine': give a SourceEntry, not 'not an entry'"):
        SOURCES.add("mine", "not an entry")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="metric 'mine': give a Metric, not ObjectiveEntry"):
        METRICS.add("mine", ObjectiveEntry(print))  # type: ignore[arg-type]
    assert "mine" not in SOURCES
    assert "mine" not in METRICS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ObjectiveEntry(print, knobs=("aplha",)), "knob='aplha': give 'alpha' or 'beta'"),
        (lambda: ObjectiveEntry("pft_core.objectives.nll"), "build='pft_core.objectives.nll': give a function, or"),
        (lambda: ObjectiveEntry(None), "build=None: give a function"),  # type: ignore[arg-type]
        (lambda: SourceEntry(), "neither row nor generate"),
        (lambda: SourceEntry(print, join=print), "needs_joining and join go together"),
        (lambda: SourceEntry(generate=3), "generate=3: give a function"),  # type: ignore[arg-type]
        (lambda: Metric("M", "m", of="nonsense", measure=print), "of='nonsense': give 'pole' or 'pair'"),  # type: ignore[arg-type]
        (lambda: Metric("M", "m", of="pair", measure=print, best="sideways"), "best='sideways': give 'highest'"),  # type: ignore[arg-type]
        (lambda: Metric("M", "m", of="pair", measure=print, form="two"), "form='two': give 'one' or 'all'"),  # type: ignore[arg-type]
        (lambda: Metric("M", "m", of="pair", measure="right"), "measure='right': give a function"),
        (lambda: Task("T", "t", items=print), "score=None: give a function"),
        (lambda: Yardstick("Y", "y", "words"), "choose='words': give a function"),
        (lambda: EngineEntry("torch"), "build='torch': give a function"),
    ],
)
def test_a_faulty_entry_is_refused_with_the_reason(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("no.such:fn", "'no.such:fn': there is no module 'no'"),
        ("json.nowhere:fn", "'json.nowhere:fn': there is no module 'json.nowhere'"),
        ("json:lods", "'json:lods': json has no 'lods'"),
    ],
)
def test_a_place_that_does_not_exist_is_a_user_error_when_it_is_loaded(place: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_code(OBJECTIVES["pft"].__class__(place).build)


def test_a_missing_import_inside_a_module_is_not_reported_as_a_wrong_place(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lacks_a_package.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_code("lacks_a_package:fn")
