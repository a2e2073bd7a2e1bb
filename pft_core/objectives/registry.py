"""Training objectives: small functions on the log-probabilities of branches, by the names that a config uses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pft_core.data import SIDES
from pft_core.errors import UserError, did_you_mean
from pft_core.objectives.displacement import with_displacement
from pft_core.objectives.nll import k_way_nll, mixed_nll, one_sided_nll, paired_nll
from pft_core.objectives.objective import SIDE_NAMES, Objective, Term
from pft_core.objectives.preference import dpo_loss, ipo_loss, preference_objective, simpo_loss, with_nll

__all__ = ["OBJECTIVES", "SIDE_NAMES", "Objective", "ObjectiveSettings", "Term", "build_objective"]


@dataclass(frozen=True)
class ObjectiveSettings:
    """An objective's name and what it may read.

    alpha, beta: weights of the sides; update: of pft. preference_beta: how far preference losses let the policy move,
    simpo_gamma: SimPO's target margin, nll_weight: of dpo_nll's second term; axes: of k_way, in the space's order.
    reports_displacement: whether log-probabilities are compared with a reference where the loss does not need one.
    """

    name: str
    alpha: float = 1.0
    beta: float = 1.0
    update: Literal["synchronous", "asynchronous"] = "synchronous"
    preference_beta: float = 0.1
    simpo_gamma: float = 1.0
    nll_weight: float = 1.0
    axes: tuple[str, ...] = ()
    reports_displacement: bool = False


def _pft(s: ObjectiveSettings) -> Objective:
    return paired_nll(alpha=s.alpha, beta=s.beta, update=s.update)


def _k_way(s: ObjectiveSettings) -> Objective:
    return k_way_nll(alpha=s.alpha, beta=s.beta, axes=s.axes)


def _dpo(s: ObjectiveSettings, sides: Sequence[int] = SIDES) -> Objective:
    return preference_objective(partial(dpo_loss, beta=s.preference_beta), alpha=s.alpha, beta=s.beta, sides=sides)


def _ipo(s: ObjectiveSettings) -> Objective:
    return preference_objective(partial(ipo_loss, beta=s.preference_beta), alpha=s.alpha, beta=s.beta)


def _simpo(s: ObjectiveSettings) -> Objective:
    loss = partial(simpo_loss, beta=s.preference_beta, gamma=s.simpo_gamma)
    return preference_objective(loss, alpha=s.alpha, beta=s.beta, uses_reference=False)


OBJECTIVES: dict[str, Callable[[ObjectiveSettings], Objective]] = {
    "pft": _pft,
    "k_way": _k_way,
    "one_sided:first": lambda _: one_sided_nll(side=0),
    "one_sided:second": lambda _: one_sided_nll(side=1),
    "mixed": lambda _: mixed_nll(),
    "dpo": _dpo,
    "dpo:first": partial(_dpo, sides=(0,)),
    "dpo:second": partial(_dpo, sides=(1,)),
    "dpo_nll": lambda s: with_nll(_dpo(s), weight=s.nll_weight),
    "ipo": _ipo,
    "simpo": _simpo,
}


def build_objective(settings: ObjectiveSettings) -> Objective:
    """Build the objective that the settings name. Raises UserError for an unknown one."""
    if settings.name not in OBJECTIVES:
        raise UserError(f"train.objective={settings.name!r} does not exist.{did_you_mean(settings.name, OBJECTIVES)}")
    objective = OBJECTIVES[settings.name](settings)
    return with_displacement(objective) if objective.uses_reference or settings.reports_displacement else objective
