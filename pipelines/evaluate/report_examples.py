"""Example items for the report of an evaluation: right, wrong and flipped ones of each axis."""

from collections.abc import Sequence

from pft_core.data import SIDES, PreferenceSpace
from pft_core.evaluation import Outcome
from pipelines.reporting import Example

KINDS = ("right under both poles", "wrong under at least one pole", "flipped: each pole got the other's answer")
KINDS_OF_ONE_POLE = ("right", "wrong")


def examples(outcomes: Sequence[Outcome], space: PreferenceSpace) -> list[Example]:
    """Return the first item of each kind and axis, among those that ask for one option."""
    first: dict[tuple[str, str], Outcome] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.item_id):
        if outcome.form == "one" and outcome.scenario_text:
            first.setdefault((outcome.axis, kind_of(outcome)), outcome)
    axes = [axis.name for axis in space.axes]
    return [
        as_example(first[at], at[1], space)
        for at in sorted(first, key=lambda at: (axes.index(at[0]), (*KINDS, *KINDS_OF_ONE_POLE).index(at[1])))
    ]


def kind_of(outcome: Outcome) -> str:
    right = [outcome.shows_only(choice, side) for side, choice in enumerate(outcome.chosen)]
    if len(right) == 1:
        return KINDS_OF_ONE_POLE[not right[0]]
    flipped = all(outcome.shows_only(outcome.chosen[side], 1 - side) for side in SIDES)
    return KINDS[0] if all(right) else KINDS[2] if flipped else KINDS[1]


def as_example(outcome: Outcome, kind: str, space: PreferenceSpace) -> Example:
    poles = [pole.name for pole in space.axis(outcome.axis).poles]
    shown = poles if len(poles) > 1 else [*poles, f"not {poles[0]}"]
    return {
        "kind": kind,
        "axis": outcome.axis,
        "scenario": outcome.scenario_text,
        "options": [
            {
                "text": text,
                "pole": shown[side],
                "probabilities": probabilities(outcome, place, poles),
            }
            for place, (text, side) in enumerate(zip(outcome.options, outcome.sides, strict=True))
        ],
        "chosen": {
            pole: "unparsed" if choice is None else "; ".join(outcome.options[i] for i in sorted(choice))
            for pole, choice in zip(poles, outcome.chosen, strict=True)
        },
    }


def probabilities(outcome: Outcome, place: int, poles: Sequence[str]) -> dict[str, float]:
    """Return the probability of an option under each pole; empty if it was not scored."""
    return {pole: shares[place] for pole, shares in zip(poles, outcome.probabilities, strict=False)}
