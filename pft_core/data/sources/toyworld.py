"""The generator of `toyworld`: small dilemmas about things, with options that act in one manner or its opposite."""

import random
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal

from pft_core.data.preferences import PreferenceSpace, load_space
from pft_core.data.records import Option, PairedExample, content_id
from pft_core.data.sources.checks import AcceptedRow
from pft_core.data.sources.toyworld_words import ACTIONS, MANNERS, NAMES, SITUATIONS, THINGS
from pft_core.errors import UserError

Split = Literal["train", "validation", "test"]  # of the generated data

# A combination of two words belongs to the split that holds (index + index) mod 10. This is the same for every seed,
# so that a policy trained on any seed has seen no scenario and no option phrase of any other split.
_SHARES: dict[Split, range] = {"train": range(7), "validation": range(7, 8), "test": range(8, 10)}
_NUM_OPTIONS = (2, 3, 4, 5)


def generate(
    *, seed: int, split: Split, num_per_axis: int, space: PreferenceSpace | None = None
) -> Iterator[PairedExample]:
    """Yield `num_per_axis` records for each axis of the space (default: `toyworld`), with the axes taking turns.

    The option order is balanced by construction: records come in twos with opposite poles at every position, so that
    among an even number each position shows each pole equally often. The number of options cycles through 2 to 5.
    Raises UserError if the split has fewer scenarios than `num_per_axis`.
    """
    space = space or load_space("toyworld")
    streams = [_axis_items(axis.name, seed=seed, split=split, num_items=num_per_axis) for axis in space.axes]
    for items in zip(*streams, strict=True):
        yield from items


def generated_rows(*, split: Split, seed: int, num_per_axis: int) -> Iterator[tuple[str, AcceptedRow]]:
    """The generated records of toyworld, each with its place and its axis."""
    space = load_space("toyworld")
    for number, record in enumerate(generate(seed=seed, split=split, num_per_axis=num_per_axis)):
        yield f"toyworld:{number}", AcceptedRow(record, space.axis(record.axis))


def _axis_items(axis: str, *, seed: int, split: Split, num_items: int) -> Iterator[PairedExample]:
    rng = random.Random(f"{seed}/{split}/{axis}")
    scenarios = _scenarios(split)
    if num_items > len(scenarios):
        limit = f"split {split!r} of toyworld has {len(scenarios)} scenarios for each axis"
        raise UserError(f"num_per_axis={num_items}: {limit}; lower it to {len(scenarios)} or less")
    sides: tuple[int, ...] = ()
    for i, (text, thing) in enumerate(rng.sample(scenarios, num_items)):
        num_options = _NUM_OPTIONS[i // 2 % len(_NUM_OPTIONS)]
        sides = tuple(1 - side for side in sides) if i % 2 else _draw_sides(rng, num_options)
        options = _draw_options(rng, axis, sides, thing=thing, split=split)
        yield PairedExample(content_id(axis, text, options), axis, text, options)


def _draw_sides(rng: random.Random, num_options: int) -> tuple[int, ...]:
    """Draw the pole of each position, uniformly from all patterns that show both poles."""
    return rng.choice([sides for sides in product((0, 1), repeat=num_options) if len(set(sides)) == 2])


def _draw_options(
    rng: random.Random, axis: str, sides: Sequence[int], *, thing: str, split: Split
) -> tuple[Option, ...]:
    manners = [iter(rng.sample(words, len(sides))) for words in MANNERS[axis]]
    action = rng.choice([a for i, a in enumerate(ACTIONS) if _owns(split, i, THINGS.index(thing))])
    return tuple(Option(f"{next(manners[side])} {action} the {thing}", side) for side in sides)


def _scenarios(split: Split) -> list[tuple[str, str]]:
    """Return all pairs (scenario, thing) of a split."""
    return [
        (situation.format(name=name, thing=thing), thing)
        for (i, name), (j, thing) in product(enumerate(NAMES), enumerate(THINGS))
        if _owns(split, i, j)
        for situation in SITUATIONS
    ]


def _owns(split: Split, first: int, second: int) -> bool:
    return (first + second) % 10 in _SHARES[split]
