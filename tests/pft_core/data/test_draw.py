"""A draw of records depends on the seed and the records alone."""

import random
from collections import Counter

import pytest

from pft_core.data import PairedExample
from pft_core.data.draw import drawn
from pft_core.data.records import Option
from tests.builders import record

RECORDS = [record(n, axis=("Risk", "Pace")[n % 3 == 0]) for n in range(90)]  # 30 of Pace, 60 of Risk


def ids(records: list[PairedExample]) -> set[str]:
    return {each.id for each in records}


def test_so_many_records_of_each_axis_are_drawn_and_stay_in_order() -> None:
    some = drawn(RECORDS, 20, seed=0)
    assert Counter(each.axis for each in some) == {"Risk": 20, "Pace": 20}
    assert [each for each in RECORDS if each in some] == some
    assert some[:10] != RECORDS[:10]
    assert Counter(each.axis for each in drawn(RECORDS, 40, seed=0)) == {"Risk": 40, "Pace": 30}


def test_the_order_of_the_files_does_not_change_the_draw() -> None:
    shuffled = random.Random(0).sample(RECORDS, len(RECORDS))
    assert ids(drawn(shuffled, 20, seed=0)) == ids(drawn(RECORDS, 20, seed=0))


def test_another_seed_draws_others_and_a_larger_draw_contains_a_smaller_one() -> None:
    some = ids(drawn(RECORDS, 20, seed=0))
    assert some != ids(drawn(RECORDS, 20, seed=1))
    assert some < ids(drawn(RECORDS, 25, seed=0))


def test_every_record_is_drawn_about_equally_often() -> None:
    counts = Counter(each.id for seed in range(300) for each in drawn(RECORDS, 15, seed=seed) if each.axis == "Pace")
    # Half of 300 draws, with a standard deviation of 9.
    assert len(counts) == 30
    assert all(100 < count < 200 for count in counts.values())


def twin(number: int, side: int) -> PairedExample:
    options = (Option(f"go {number}", side), Option(f"stay {number}", 1 - side))
    return PairedExample(f"{number}-{side}", "Risk", f"Plan {number}, {side}.", options)


@pytest.mark.parametrize("per_axis", [2, 8, 9])
def test_twins_are_drawn_together(per_axis: int) -> None:
    twins = [twin(number, side) for side in (0, 1) for number in range(10)]
    pairs = Counter(each.id.partition("-")[0] for each in drawn(twins, per_axis, seed=0))
    assert sorted(pairs.values()) == [1] * (per_axis % 2) + [2] * (per_axis // 2)


def test_many_records_with_the_same_options_are_drawn_one_by_one() -> None:
    same = (Option("Yes", 0), Option("No", 1))
    statements = [PairedExample(f"s{n}", "Risk", f"Statement {n}.", same) for n in range(20)]
    others = [PairedExample(f"o{n}", "Risk", f"Plan {n}.", (Option(f"go {n}", 0), same[1])) for n in range(20)]
    kinds = Counter(each.id[0] for each in drawn([*statements, *others], 20, seed=0))
    assert min(kinds.values()) > 4
