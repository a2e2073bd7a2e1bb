"""The methods that a suite can name: how each is trained, and how it is asked. A yardstick can be named as one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pft_core.errors import UserError, did_you_mean
from pft_core.evaluation import YARDSTICKS
from pft_core.objectives import OBJECTIVES

AskedBy = Literal["condition", "history", "steering", "yardstick"]


@dataclass(frozen=True)
class Method:
    """stages: for each training in turn, what it changes in the suite's run config (none: nothing is trained); a later
    stage starts from the policy of the one before. asked: how the policy is told the preference, or that a yardstick
    answers in its place. says: what it is, for the reader of a table. seeded: whether a seed changes what it does.
    """

    says: str
    stages: tuple[Mapping[str, Any], ...] = ()
    asked: AskedBy = "condition"

    @property
    def seeded(self) -> bool:
        return bool(self.stages) or self.asked == "history"


def _trained(says: str, objective: str, **changes: Any) -> Method:
    return Method(says, ({"train.objective": objective, **changes},))


_CONTROL = {"prompt.condition": "control_token"}

METHODS: dict[str, Method] = {
    "prompt_only": Method("the base model, told the preference"),
    "history": Method("the base model, shown solved examples of the preference", asked="history"),
    "caa": Method("the base model, steered by the mean difference of its activations", asked="steering"),
    "sft:first": _trained("supervised on the first pole of every axis", "one_sided:first"),
    "sft:second": _trained("supervised on the second pole of every axis", "one_sided:second"),
    "sft:mixed": _trained("supervised on both poles as one pile", "mixed"),
    "dpo:first": _trained("DPO on the first pole of every axis", "dpo:first"),
    "dpo:second": _trained("DPO on the second pole of every axis", "dpo:second"),
    "dpo": _trained("DPO on both poles", "dpo"),
    "dpo_nll": _trained("DPO on both poles, and their likelihood", "dpo_nll"),
    "ipo": _trained("IPO on both poles", "ipo"),
    "simpo": _trained("SimPO on both poles", "simpo", **{"train.preference_beta": 2.0, "train.simpo_gamma": 1.0}),
    "controllable_po": Method(
        "Controllable Preference Optimization: supervised on control tokens, then DPO under them",
        ({"train.objective": "mixed", **_CONTROL}, {"train.objective": "dpo", **_CONTROL}),
    ),
    "pft": _trained("paired fine-tuning, both sides in one update", "pft"),
    "pft_async": _trained("paired fine-tuning, one update for each side", "pft", **{"train.update": "asynchronous"}),
    "k_way": _trained("paired fine-tuning, every axis with its own mean", "k_way"),
}


def method(name: str) -> Method:
    """Look up a method, a yardstick, or a training by any registered objective. Raises UserError."""
    _refuse_two_meanings(name)
    if name in YARDSTICKS:
        return Method(YARDSTICKS[name].says, asked="yardstick")
    if name in METHODS:
        return METHODS[name]
    if name in OBJECTIVES:
        return _trained(f"trained with the objective {name}", name)
    known = dict.fromkeys([*YARDSTICKS, *METHODS, *OBJECTIVES])
    raise UserError(f"method {name!r} does not exist.{did_you_mean(name, known)}")


def _refuse_two_meanings(name: str) -> None:
    """Raise UserError for a name under which a plugin's objective or yardstick would silently not be used."""
    trained = [stage["train.objective"] for stage in METHODS[name].stages] if name in METHODS else []
    meanings = {"yardstick": name in YARDSTICKS, "objective": name in OBJECTIVES, "method": name in METHODS}
    if sum(meanings.values()) > 1 and (name in YARDSTICKS or trained != [name]):
        kinds = " and ".join(kind for kind, is_there in meanings.items() if is_there)
        raise UserError(f"method {name!r} is the name of a registered {kinds}: choose another name for yours")
