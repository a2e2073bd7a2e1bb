"""Sources of a search's points: a list in which soups wait for their parents, or a stored Optuna study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from pft_core.errors import UserError
from pipelines.config import Range, RunConfig, SearchSettings, config_with_changes
from pipelines.tune.figures import POLES
from pipelines.tune.search_points import SearchPoint, at_log_ratio

POINT, T = "point", "t"  # keys of a trial's config in Ray Tune: a listed point, or log(alpha / beta)
STUDY_FILE, STUDY_NAME, INTERRUPTED = "optuna.db", "search", "interrupted"


class ListedPoints(Searcher):
    """Suggests points in order; a point with parents waits until they have ended."""

    def __init__(self, points: Sequence[SearchPoint]):
        super().__init__()
        self._waiting = list(points)
        self._running: dict[str, SearchPoint] = {}
        self._ended: set[tuple[float, float]] = set()

    def suggest(self, trial_id: str) -> Any:
        if not self._waiting:
            return Searcher.FINISHED
        ready = next((p for p in self._waiting if self._ended.issuperset(p.parents)), None)
        if ready is None:
            return None  # Tune asks again
        self._waiting.remove(ready)
        self._running[trial_id] = ready
        return {POINT: ready.to_json()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        point = self._running.pop(trial_id)
        self._ended.add((point.alpha, point.beta))  # also after an error: the soup then reports which parent is missing


class OptunaPoints:
    """An Optuna study with two goals, both poles' accuracy, stored in a file in the search's folder.

    num_left: the number of trials to go. Trials that an interrupted search was running are proposed again first.
    """

    def __init__(self, config: RunConfig, folder: Path):
        search = config.search
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / STUDY_FILE}")
        study = optuna.create_study(
            storage=storage, study_name=STUDY_NAME, directions=["maximize"] * len(POLES), load_if_exists=True
        )
        propose_again(study)
        self.num_left = max(0, search.num_trials - len(ended_trials(study)))
        # A new generator must not repeat earlier proposals.
        sampler = sampler_of(search, seed=config.seed + len(study.trials))
        self.searcher = OptunaSearch(
            distributions_of(config),
            metric=list(POLES),
            mode=["max"] * len(POLES),
            sampler=sampler,
            storage=storage,
            study_name=STUDY_NAME,
        )
        self._study = study

    def points(self) -> list[SearchPoint]:
        """Return the proposed points in order, each once."""
        return list({(point := point_of(trial.params)).to_json(): point for trial in self._study.trials}.values())


def propose_again(study: optuna.Study) -> None:
    """Put the trials that a killed search was running at the front of the queue."""
    interrupted = [trial for trial in study.trials if trial.state == TrialState.RUNNING]
    known = study.user_attrs.get(INTERRUPTED, [])
    study.set_user_attr(INTERRUPTED, [*known, *(trial.number for trial in interrupted)])
    for trial in interrupted:
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.FAIL)


def ended_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [trial for trial in ended if trial.number not in study.user_attrs[INTERRUPTED]]


def distributions_of(config: RunConfig) -> dict[str, BaseDistribution]:
    search = config.search
    ratio = FloatDistribution(search.t.low, search.t.high)
    return {T: ratio} | {key: distribution_of(values, config, key) for key, values in search.space.items()}


def distribution_of(values: Range | list[Any], config: RunConfig, key: str) -> BaseDistribution:
    if not isinstance(values, Range):
        return CategoricalDistribution(values)
    if takes_fractions(config, key):
        return FloatDistribution(values.low, values.high, log=values.log)
    return IntDistribution(int(values.low), int(values.high), log=values.log)


def takes_fractions(config: RunConfig, key: str) -> bool:
    """Return whether a key takes fractions, by trying one in the config."""
    try:
        config_with_changes(config.model_dump(), [{key: 0.5}], source="search.space")
    except UserError as error:
        return "integer" not in str(error)
    return True


def sampler_of(search: SearchSettings, *, seed: int) -> optuna.samplers.BaseSampler:
    if search.sampler == "nsga2":
        # The default of 50 would leave a short search no second generation.
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, search.num_trials // 4))
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, search.num_trials // 4))


def point_of(config: Mapping[str, Any]) -> SearchPoint:
    """Return the point of a trial's config in Ray Tune."""
    if POINT in config:
        return SearchPoint.from_json(config[POINT])
    return SearchPoint(*at_log_ratio(config[T]), changes={key: value for key, value in config.items() if key != T})
