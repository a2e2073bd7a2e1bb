"""Yardsticks: what they read, what they ignore, and their accuracy on real data."""

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

REVEALING = ("gamble bet plunge", "wait ask check")  # the words of each pole
NEUTRAL = ("house", "river", "money", "friend", "work")


def item(number: int, *, axis: str = "Risk", reveals: bool = True) -> PairedExample:
    """Return a scenario with two options per pole, made of neutral words and one word that reveals the pole."""
    rng = random.Random(f"{axis}{number}{reveals}")
    options = []
    for side in (0, 0, 1, 1):
        first = rng.choice(REVEALING[side].split()) if reveals else "go"
        options.append(Option(f"{first} {rng.choice(NEUTRAL)} {rng.choice(NEUTRAL)} {len(options)}", side))
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


def test_an_option_is_chosen_by_its_probability() -> None:
    probabilities = [(0.4, "a"), (0.9, "b"), (0.5, "c"), (0.2, "d")]
    assert choose(probabilities, "one") == ({1}, {3})
    assert choose(probabilities, "all") == ({1, 2}, {0, 2, 3})  # a probability of 1/2 counts for both poles


def test_form_all_chooses_at_least_one_option() -> None:
    assert choose([(0.6, "a"), (0.9, "b")], "all") == ({0, 1}, {0})
    assert choose([(0.3, "a"), (0.1, "b")], "all") == ({0}, {0, 1})


def test_options_with_equal_probabilities_are_ordered_by_text_not_by_place() -> None:
    assert choose([(0.5, "a"), (0.5, "b")], "one") == ({1}, {0})
    assert choose([(0.5, "b"), (0.5, "a")], "one") == ({0}, {1})


def test_the_probe_learns_the_words_of_a_pole() -> None:
    outcomes = bag_of_words(TRAIN, TEST, seed=0)
    assert [o.item_id for o in outcomes] == [r.id for r in TEST]
    assert all(both_right(o)[0] for o in outcomes)
    every = bag_of_words(TRAIN, TEST, seed=0, form="all")
    assert all(o.form == "all" and o.chosen == (o.gold(0), o.gold(1)) for o in every)


def test_each_axis_has_its_own_probe() -> None:
    # On the other axis the same words show the opposite pole.
    def on_pace(records: Sequence[PairedExample]) -> list[PairedExample]:
        return [paired_example("Pace", r.scenario, [Option(o.text, 1 - o.side) for o in r.options]) for r in records]

    outcomes = bag_of_words(TRAIN + on_pace(TRAIN), TEST + on_pace(TEST), seed=0)
    assert all(both_right(o)[0] for o in outcomes)


def test_the_probe_ignores_the_scenario() -> None:
    # Each training scenario contains words of a pole; every test scenario contains the words of one pole.
    revealing_train = [replace(r, scenario=f"{r.scenario} {REVEALING[i % 2]}") for i, r in enumerate(TRAIN)]
    revealing_test = [replace(r, scenario=f"{r.scenario} {REVEALING[1]}") for r in TEST]
    assert [o.chosen for o in bag_of_words(revealing_train, revealing_test, seed=0)] == [
        o.chosen for o in bag_of_words(TRAIN, TEST, seed=0)
    ]


def test_the_probe_ignores_the_order_of_options() -> None:
    # The words of `unknown` are in no training record, so all of its options are equally likely.
    unknown = paired_example(
        "Risk", "A cave.", [Option(word, i % 2) for i, word in enumerate(("north", "south", "up"))]
    )
    records = [*TEST, unknown]
    backwards = [replace(r, options=r.options[::-1]) for r in records]
    for ahead, back in zip(bag_of_words(TRAIN, records, seed=0), bag_of_words(TRAIN, backwards, seed=0), strict=True):
        last = len(ahead.sides) - 1
        assert [{last - i for i in chosen} for chosen in back.chosen if chosen] == list(ahead.chosen)


def test_the_regularization_is_chosen_on_held_out_scenarios() -> None:
    # The four options of a pole in a scenario share a word that occurs nowhere else: it reveals the pole within the
    # scenario but message nothing about others, and the neutral words only mislead. Holding out rows would choose 1000.
    rng = random.Random(0)
    records = [
        paired_example(
            "Risk",
            f"Plan {number}.",
            [
                Option(f"{'ab'[side]}{number} {' '.join(rng.choices(NEUTRAL, k=3))} {k}", side)
                for side in (0, 1)
                for k in range(4)
            ],
        )
        for number in range(12)
    ]
    assert fit_probe(records, "Risk", seed=0).named_steps["logisticregression"].C == 0.1


def test_options_may_consist_of_symbols_only() -> None:
    records = [paired_example("Risk", f"Plan {i}.", [Option("+", 0), Option("-", 1)]) for i in range(4)]
    assert all(both_right(o)[0] for o in bag_of_words(records, records, seed=0))


def one_sided(record: PairedExample) -> PairedExample:
    return replace(record, options=tuple(o for o in record.options if o.side == 0))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([item(0, axis="Pace")], "axis 'Risk': .* scenarios: 0, poles: 0"),
        ([one_sided(r) for r in TRAIN], "scenarios: 20, poles: 1"),
        (TRAIN[:1], "scenarios: 1, poles: 2"),
    ],
)
def test_an_axis_without_enough_training_records_is_refused(train: list[PairedExample], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bag_of_words(train, TEST, seed=0)


def test_toyworld_is_solved_by_words() -> None:
    # Its splits share no phrase, but the words that mark a pole occur in every split: these are to be learned.
    train, test = (list(generate(seed=0, split=split, num_per_axis=40)) for split in ("train", "test"))
    assert share_right(bag_of_words(train, test, seed=0)) > 0.9
    assert share_right(position_only(test, "one")) == 0.5


def test_words_alone_are_often_right_on_released_vcd(vcd_dir: Path) -> None:
    train, test = (read_vcd(vcd_dir / f"{split}.json") for split in ("train", "test"))
    assert 0.75 < share_right(bag_of_words(train, test, seed=0)) < 0.9
    assert 0.4 < share_right(position_only(test, "one")) < 0.6


def read_vcd(path: Path) -> list[PairedExample]:
    rows = (row for part in file_parts(path, path.name) for row in read_rows(part))
    parsed = [outcome for _, outcome in parse_rows(rows, source="vcd", axis=None)]
    return [outcome.record for outcome in parsed if isinstance(outcome, AcceptedRow)]
