"""Sources of points: lists in which soups wait, and stored studies."""

import math
from pathlib import Path

import optuna
import pytest
from ray.tune.search import Searcher

from pipelines.config.run_config import RunConfig
from pipelines.config.search_settings import SearchSettings
from pipelines.tune.search_points import soup_points
from pipelines.tune.searchers import ListedPoints, OptunaPoints, point_of, sampler_of


def test_a_soup_waits_for_its_parents() -> None:
    points = soup_points(SearchSettings(alphas=[0, 1, 3], betas=[0, 1, 3]))  # soups at 1:3 and 3:1
    searcher = ListedPoints(points)
    names = [point_of(searcher.suggest(f"trial {i}")).ratio for i in range(2)]
    assert names == ["1:1", "0:1"]
    assert point_of(searcher.suggest("trial 2")).ratio == "1:0"
    assert point_of(searcher.suggest("trial 3")).source == "base"
    assert searcher.suggest("trial 4") is None
    searcher.on_trial_complete("trial 0", {})
    assert searcher.suggest("trial 4") is None
    searcher.on_trial_complete("trial 1", error=True)  # the soup will report the missing parent
    assert point_of(searcher.suggest("trial 4")).ratio == "1:3"
    assert searcher.suggest("trial 5") is None
    searcher.on_trial_complete("trial 2", {})
    assert point_of(searcher.suggest("trial 5")).ratio == "3:1"
    assert searcher.suggest("trial 6") == Searcher.FINISHED


def search(**changes) -> RunConfig:
    return RunConfig(search=SearchSettings(num_trials=4, **changes))


def study(folder: Path, config: RunConfig) -> OptunaPoints:
    return OptunaPoints(config, folder)


def test_an_interrupted_study_proposes_again_what_was_running(tmp_path) -> None:
    first = study(tmp_path, search())
    assert first.num_left == 4
    done, cut = (point_of(first.searcher.suggest(name)) for name in ("done", "cut"))
    first.searcher.on_trial_complete("done", {"pole_first": 0.5, "pole_second": 0.4})

    second = study(tmp_path, search())
    assert second.num_left == 3
    assert point_of(second.searcher.suggest("again")) == cut
    new = point_of(second.searcher.suggest("new"))
    assert new not in (done, cut)
    assert second.points() == [done, cut, new]

    third = study(tmp_path, search())  # cut twice
    assert third.num_left == 3
    assert [point_of(third.searcher.suggest(name)) for name in ("a", "b")] == [cut, new]


def test_a_failed_trial_is_not_proposed_again(tmp_path) -> None:
    first = study(tmp_path, search())
    first.searcher.suggest("failed")
    first.searcher.on_trial_complete("failed", error=True)
    assert study(tmp_path, search()).num_left == 3


def test_lists_ranges_and_whole_numbers_are_searched_as_what_they_are(tmp_path) -> None:
    space = {
        "lora.r": [4, 8],
        "train.lr": {"low": 0.1, "high": 0.2, "log": True},
        "train.pairs_per_step": {"low": 8, "high": 16},
        "train.weight_decay": {"low": 0, "high": 1},  # whole ends do not make it an integer: the config decides
    }
    points = study(tmp_path, search(space=space, sampler="random"))
    for i in range(8):
        point = point_of(points.searcher.suggest(str(i)))
        assert point.changes["lora.r"] in (4, 8)
        assert 0.1 <= point.changes["train.lr"] <= 0.2
        assert point.changes["train.pairs_per_step"] in range(8, 17)
        assert 0 < point.changes["train.weight_decay"] < 1
        assert point.alpha + point.beta == pytest.approx(2)
        assert abs(math.log(point.alpha / point.beta)) <= math.log(8) + 1e-9


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tpe", optuna.samplers.TPESampler),
        ("nsga2", optuna.samplers.NSGAIISampler),
        ("random", optuna.samplers.RandomSampler),
    ],
)
def test_every_sampler_can_search_two_goals(tmp_path, name, kind) -> None:
    config = search(sampler=name)
    assert isinstance(sampler_of(config.search, seed=0), kind)
    points = study(tmp_path, config)
    for i in range(6):
        share = point_of(points.searcher.suggest(str(i))).share
        points.searcher.on_trial_complete(str(i), {"pole_first": share, "pole_second": 1 - share})
    assert len(points.points()) == 6
