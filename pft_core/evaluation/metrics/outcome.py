"""What a policy chose for one item: all that a metric of choices is computed from."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

from pft_core.data import Form

Choice = frozenset[int] | None  # indices of the chosen options in shown order; None: no parsable choice
PLACES = 4  # of a probability; what lies beyond depends on the machine


class WeightedChoice(frozenset[int]):
    """A choice that knows how likely each option was, in shown order."""

    probabilities: tuple[float, ...]

    def __new__(cls, chosen: Iterable[int], probabilities: Iterable[float] = ()) -> "WeightedChoice":
        made = super().__new__(cls, chosen)
        made.probabilities = tuple(round(float(p), PLACES) for p in probabilities)
        return made


@dataclass(frozen=True)
class Outcome:
    """What a policy chose for one item (a record under one form of question).

    scenario: what bootstrap clusters are made of; sides: side of each option as shown; chosen: under the first and
    the second pole; unconditioned, base_unconditioned: without a condition, by the policy and by its base (form `one`);
    scenario_text, options: the texts that were asked, for a reader; older files do not hold them.
    probabilities: of each option under the first and the second pole; empty where they were not scored.
    """

    item_id: str
    scenario: str
    axis: str
    form: Form
    sides: tuple[int, ...]
    chosen: tuple[Choice, Choice]
    unconditioned: Choice = None
    base_unconditioned: Choice = None
    scenario_text: str = ""
    options: tuple[str, ...] = ()
    probabilities: tuple[tuple[float, ...], ...] = field(default=(), compare=False)

    def gold(self, side: int) -> frozenset[int]:
        """Return the indices of the options that show a side's pole."""
        return frozenset(i for i, s in enumerate(self.sides) if s == side)

    def shows_only(self, choice: Choice, side: int) -> bool:
        """Return whether all that was chosen shows this side; False for an unparsed choice."""
        return choice is not None and choice <= self.gold(side)

    def to_json(self) -> str:
        """Return the outcome as a line of outcomes.jsonl."""
        return json.dumps(asdict(self), default=sorted)

    @staticmethod
    def from_json(text: str) -> "Outcome":
        """Return the outcome that `to_json` wrote."""
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
    """Return the outcome of the policy that reads nothing: first option for the first pole, second for the second."""
    return replace(outcome, chosen=(frozenset({0}), frozenset({1})))
