"""The outcome of one item: a policy's choices, from which metrics are computed."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

from pft_core.data import Form

Choice = frozenset[int] | None  # indices of the chosen options as shown; None: no parsable choice
PLACES = 4  # decimal places of a probability; further ones depend on the machine


class WeightedChoice(frozenset[int]):
    """A choice with the probability of each option, in the order shown."""

    probabilities: tuple[float, ...]

    def __new__(cls, chosen: Iterable[int], probabilities: Iterable[float] = ()) -> "WeightedChoice":
        choice = super().__new__(cls, chosen)
        choice.probabilities = tuple(round(float(p), PLACES) for p in probabilities)
        return choice


@dataclass(frozen=True)
class Outcome:
    """A policy's choices for one item, which is a record under one form of question.

    scenario: the bootstrap cluster of the item. sides: the side of each option, in the order shown. chosen: the choices
    under the first and the second pole, or the only choice if the axis has one pole. unconditioned, base_unconditioned:
    the choices of the policy and of its base without a condition (form `one`). scenario_text, options: the texts, for a
    reader; older files lack them. probabilities: those of each option for each choice in `chosen`; empty if they were
    not scored.
    """

    item_id: str
    scenario: str
    axis: str
    form: Form
    sides: tuple[int, ...]
    chosen: tuple[Choice, ...]
    unconditioned: Choice = None
    base_unconditioned: Choice = None
    scenario_text: str = ""
    options: tuple[str, ...] = ()
    probabilities: tuple[tuple[float, ...], ...] = field(default=(), compare=False)

    def gold(self, side: int) -> frozenset[int]:
        """Return the options that show this side."""
        return frozenset(i for i, s in enumerate(self.sides) if s == side)

    def shows_only(self, choice: Choice, side: int) -> bool:
        """Return whether every chosen option shows this side; False for an unparsed choice."""
        return choice is not None and choice <= self.gold(side)

    def to_json(self) -> str:
        """Return the outcome as one line of JSON."""
        return json.dumps(asdict(self), default=sorted)

    @staticmethod
    def from_json(text: str) -> "Outcome":
        """Read what `to_json` wrote. Raises JSONDecodeError, KeyError or TypeError if it is anything else."""
        raw = json.loads(text)
        raw["sides"] = tuple(raw["sides"])
        raw["chosen"] = tuple(_choice(indices) for indices in raw["chosen"])
        for key in ("unconditioned", "base_unconditioned"):
            raw[key] = _choice(raw[key])
        raw["options"] = tuple(raw.get("options", ()))
        raw["probabilities"] = tuple(map(tuple, raw.get("probabilities", ())))
        return Outcome(**raw)


def _choice(indices: list[int] | None) -> Choice:
    return None if indices is None else frozenset(indices)


def always_by_position(outcome: Outcome) -> Outcome:
    """Return the outcome of a policy that reads nothing: first option for the first pole, second for the second.

    It is certain of these choices, for metrics that read probabilities.
    """
    places, poles = range(len(outcome.sides)), range(len(outcome.chosen))
    certain = tuple(tuple(float(place == pole) for place in places) for pole in poles)
    return replace(outcome, chosen=tuple(frozenset({pole}) for pole in poles), probabilities=certain)
