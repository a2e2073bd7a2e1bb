"""The methods that a suite can name: how each is trained and asked. Suites name yardsticks in the same way."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pft_core.errors import UserError, did_you_mean
from pft_core.evaluation import YARDSTICKS
from pft_core.objectives import OBJECTIVES

AskedBy = Literal["condition", "history", "steering", "yardstick"]


@dataclass(frozen=True)
class Method:
    """A method. says: its description.

    stages: for each training in turn, its changes to the suite's run config (none: no training); a later stage starts
    from the policy of the one before. asked_by: how the policy gets the preference, or that a yardstick answers
    instead. seeded: whether its results depend on a seed.
    """

    says: str
    stages: tuple[Mapping[str, Any], ...] = ()
    asked_by: AskedBy = "condition"

    @property
    def seeded(self) -> bool:
        return bool(self.stages) or self.asked_by == "history"


def _trained(says: str, objective: str, **changes: Any) -> Method:
    return Method(says, ({"train.objective": objective, **changes},))


_CONTROL = {"prompt.condition": "control_token"}

METHODS: dict[str, Method] = {
    "prompt_only": Method("the base model, with the preference in the prompt"),
    "history": Method("the base model, shown solved examples of the preference", asked_by="history"),
    "caa": Method("the base model, steered by the mean difference of its activations", asked_by="steering"),
    "sft:first": _trained("supervised fine-tuning on the first pole of every axis", "one_sided:first"),
    "sft:second": _trained("supervised fine-tuning on the second pole of every axis", "one_sided:second"),
    "sft:mixed": _trained("supervised fine-tuning on both poles, mixed into one data set", "mixed"),
    "dpo:first": _trained("DPO on the first pole of every axis", "dpo:first"),
    "dpo:second": _trained("DPO on the second pole of every axis", "dpo:second"),
    "dpo": _trained("DPO on both poles", "dpo"),
    "dpo_nll": _trained("DPO on both poles, plus the likelihood of the preferred answers", "dpo_nll"),
    "ipo": _trained("IPO on both poles", "ipo"),
    "simpo": _trained("SimPO on both poles", "simpo", **{"train.preference_beta": 2.0, "train.simpo_gamma": 1.0}),
    "controllable_po": Method(
        "Controllable Preference Optimization: supervised fine-tuning with control tokens, then DPO with them",
        ({"train.objective": "mixed", **_CONTROL}, {"train.objective": "dpo", **_CONTROL}),
    ),
    "pft": _trained("paired fine-tuning, both sides in one update", "pft"),
    "pft_async": _trained("paired fine-tuning, one update per side", "pft", **{"train.update": "asynchronous"}),
    "k_way": _trained("paired fine-tuning, each axis with its own mean", "k_way"),
}


def method(name: str) -> Method:
    """Look up a method, a yardstick, or training with any registered objective. Raises UserError."""
    _refuse_two_meanings(name)
    if name in YARDSTICKS:
        return Method(YARDSTICKS[name].says, asked_by="yardstick")
    if name in METHODS:
        return METHODS[name]
    if name in OBJECTIVES:
        return _trained(f"trained with the objective {name}", name)
    known = dict.fromkeys([*YARDSTICKS, *METHODS, *OBJECTIVES])
    raise UserError(f"method {name!r} does not exist.{did_you_mean(name, known)}")


def _refuse_two_meanings(name: str) -> None:
    """Raise UserError for a name under which a plugin's objective or yardstick would be silently ignored."""
    trained = [stage["train.objective"] for stage in METHODS[name].stages] if name in METHODS else []
    meanings = {"yardstick": name in YARDSTICKS, "objective": name in OBJECTIVES, "method": name in METHODS}
    if sum(meanings.values()) > 1 and (name in YARDSTICKS or trained != [name]):
        kinds = " and ".join(kind for kind, is_there in meanings.items() if is_there)
        raise UserError(f"method {name!r} is the name of a registered {kinds}: choose another name for yours")
