"""Answers that read no scenario: what they use, what they do not use, and what they reach on real data."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pft_core.data.records import Option, PairedExample, paired_example
from pft_core.data.sources.checks import AcceptedRow
from pft_core.data.sources.readers import file_parts, read_rows
from pft_core.data.sources.registry import parse_rows
from pft_core.data.sources.toyworld import generate
from pft_core.errors import UserError
from pft_core.evaluation.metrics.measures import both_right, right
from pft_core.evaluation.metrics.outcome import Outcome
from pft_core.evaluation.yardsticks.position import position_only
from pft_core.evaluation.yardsticks.words import bag_of_words, choose, fit_probe
from pft_core.files import digest

TELLING = ("gamble bet plunge", "wait ask check")  # the words of each pole
DULL = ("house", "river", "money", "friend", "work")


def item(number: int, *, axis: str = "Risk", telling: bool = True) -> PairedExample:
    """A scenario with two options of each pole, of dull words and one that tells the pole."""
    rng = random.Random(f"{axis}{number}{telling}")
    options = []
    for side in (0, 0, 1, 1):
        first = rng.choice(TELLING[side].split()) if telling else "go"
        options.append(Option(f"{first} {rng.choice(DULL)} {rng.choice(DULL)} {len(options)}", side))
    return paired_example(axis, f"Plan {number}.", options)


def share_right(outcomes: Sequence[Outcome]) -> float:
    return sum(right(o, 0)[0] + right(o, 1)[0] for o in outcomes) / (2 * len(outcomes))


TRAIN = [item(i) for i in range(20)]
TEST = [item(i) for i in range(100, 110)]


def test_position_takes_the_first_option_for_the_first_pole() -> None:
    first, second = position_only(TEST[:2], "one")
    sides = tuple(option.side for option in TEST[0].options)
    assert first == Outcome(
        TEST[0].id, digest(TEST[0].scenario), "Risk", "one", sides, (frozenset({0}), frozenset({1}))
    )
    assert second.item_id == TEST[1].id
    assert position_only(TEST[:1], "all")[0].form == "all"


def test_an_option_is_chosen_by_its_chance() -> None:
    chances = [(0.4, "a"), (0.9, "b"), (0.5, "c"), (0.2, "d")]
    assert choose(chances, "one") == ({1}, {3})
    assert choose(chances, "all") == ({1, 2}, {0, 2, 3})  # as likely as not counts for both


def test_all_asks_for_one_option_at_least() -> None:
    assert choose([(0.6, "a"), (0.9, "b")], "all") == ({0, 1}, {0})
    assert choose([(0.3, "a"), (0.1, "b")], "all") == ({0}, {0, 1})


def test_equal_chances_are_told_apart_by_text_and_not_by_place() -> None:
    assert choose([(0.5, "a"), (0.5, "b")], "one") == ({1}, {0})
    assert choose([(0.5, "b"), (0.5, "a")], "one") == ({0}, {1})


def test_the_probe_learns_the_words_of_a_pole() -> None:
    outcomes = bag_of_words(TRAIN, TEST, seed=0)
    assert [o.item_id for o in outcomes] == [r.id for r in TEST]
    assert all(both_right(o)[0] for o in outcomes)
    every = bag_of_words(TRAIN, TEST, seed=0, form="all")
    assert all(o.form == "all" and o.chosen == (o.gold(0), o.gold(1)) for o in every)


def test_each_axis_has_a_probe_of_its_own() -> None:
    # On the other axis the same words show the opposite pole.
    def turned(records: Sequence[PairedExample]) -> list[PairedExample]:
        return [paired_example("Pace", r.scenario, [Option(o.text, 1 - o.side) for o in r.options]) for r in records]

    outcomes = bag_of_words(TRAIN + turned(TRAIN), TEST + turned(TEST), seed=0)
    assert all(both_right(o)[0] for o in outcomes)


def test_the_scenario_is_not_read() -> None:
    # In training each scenario spells out words of a pole; in the test one pole's words follow every scenario.
    spelt = [replace(r, scenario=f"{r.scenario} {TELLING[i % 2]}") for i, r in enumerate(TRAIN)]
    asked = [replace(r, scenario=f"{r.scenario} {TELLING[1]}") for r in TEST]
    assert [o.chosen for o in bag_of_words(spelt, asked, seed=0)] == [
        o.chosen for o in bag_of_words(TRAIN, TEST, seed=0)
    ]


def test_the_order_of_options_is_not_read() -> None:
    # The words of `unknown` are in no training record, so all of its options are equally likely.
    unknown = paired_example(
        "Risk", "A cave.", [Option(word, i % 2) for i, word in enumerate(("north", "south", "up"))]
    )
    records = [*TEST, unknown]
    backwards = [replace(r, options=r.options[::-1]) for r in records]
    for ahead, back in zip(bag_of_words(TRAIN, records, seed=0), bag_of_words(TRAIN, backwards, seed=0), strict=True):
        last = len(ahead.sides) - 1
        assert [{last - i for i in chosen} for chosen in back.chosen if chosen] == list(ahead.chosen)


def test_regularisation_is_chosen_on_scenarios_that_were_held_out() -> None:
    # The four options of a pole in a scenario share a word that occurs nowhere else: within a scenario it tells all,
    # on another one it tells nothing, and the dull words only mislead. Rows held out one by one would choose 1000.
    rng = random.Random(0)
    records = [
        paired_example(
            "Risk",
            f"Plan {number}.",
            [
                Option(f"{'ab'[side]}{number} {' '.join(rng.choices(DULL, k=3))} {k}", side)
                for side in (0, 1)
                for k in range(4)
            ],
        )
        for number in range(12)
    ]
    assert fit_probe(records, "Risk", seed=0).named_steps["logisticregression"].C == 0.1


def test_options_of_signs_alone_are_words_too() -> None:
    records = [paired_example("Risk", f"Plan {i}.", [Option("+", 0), Option("-", 1)]) for i in range(4)]
    assert all(both_right(o)[0] for o in bag_of_words(records, records, seed=0))


def one_sided(record: PairedExample) -> PairedExample:
    return replace(record, options=tuple(o for o in record.options if o.side == 0))


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ([item(0, axis="Pace")], "axis 'Risk': .* scenarios: 0, poles: 0"),
        ([one_sided(r) for r in TRAIN], "scenarios: 20, poles: 1"),
        (TRAIN[:1], "scenarios: 1, poles: 2"),
    ],
)
def test_an_axis_that_training_does_not_teach_is_refused(train: list[PairedExample], says: str) -> None:
    with pytest.raises(UserError, match=says):
        bag_of_words(train, TEST, seed=0)


def test_toyworld_is_solved_by_words() -> None:
    # Its splits share no phrase, but the words of manner are in every split: they are what is to be learnt.
    train, test = (list(generate(seed=0, split=split, num_per_axis=40)) for split in ("train", "test"))
    assert share_right(bag_of_words(train, test, seed=0)) > 0.9
    assert share_right(position_only(test, "one")) == 0.5


def test_words_go_a_long_way_on_released_vcd(vcd_dir: Path) -> None:
    train, test = (read_vcd(vcd_dir / f"{split}.json") for split in ("train", "test"))
    assert 0.75 < share_right(bag_of_words(train, test, seed=0)) < 0.9
    assert 0.4 < share_right(position_only(test, "one")) < 0.6


def read_vcd(path: Path) -> list[PairedExample]:
    rows = (row for part in file_parts(path, path.name) for row in read_rows(part))
    parsed = [outcome for _, outcome in parse_rows(rows, source="vcd", axis=None)]
    return [outcome.record for outcome in parsed if isinstance(outcome, AcceptedRow)]
