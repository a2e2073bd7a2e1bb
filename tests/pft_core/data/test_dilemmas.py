from collections import Counter, defaultdict
from itertools import combinations

import pytest

from pft_core.data.preferences import load_space
from pft_core.data.records import PairedExample
from pft_core.data.sources.dilemmas import stored_rows
from pft_core.data.sources.registry import SOURCES
from pft_core.evaluation.metrics.registry import METRICS
from pft_core.evaluation.yardsticks.registry import YARDSTICKS

SPLITS = SOURCES["dilemmas"].splits


@pytest.fixture(scope="module")
def records() -> dict[str, list[PairedExample]]:
    return {split: [row.record for _, row in stored_rows(split=split)] for split in SPLITS}


def twins_in(records: list[PairedExample]) -> list[list[PairedExample]]:
    """Return the groups of records with the same option texts."""
    groups: defaultdict[tuple[str, ...], list[PairedExample]] = defaultdict(list)
    for record in records:
        groups[tuple(sorted(option.text for option in record.options))].append(record)
    return [group for group in groups.values() if len(group) > 1]


def test_every_axis_has_as_many_twins_as_plain_items(records: dict[str, list[PairedExample]]) -> None:
    assert {split: len(kept) for split, kept in records.items()} == {
        "train": 1008, "train_twins": 1008, "validation": 32, "test": 128, "twins": 128
    }  # fmt: skip
    everything = [record for kept in records.values() for record in kept]
    of_twins = [record for group in twins_in(everything) for record in group]
    axes = [axis.name for axis in load_space("dilemmas").axes]
    assert Counter(record.axis for record in everything) == dict.fromkeys(axes, 576)
    assert Counter(record.axis for record in of_twins) == dict.fromkeys(axes, 288)
    assert {len(record.options) for record in everything} == {2, 3, 4}


def test_twins_share_a_split_and_the_order_of_options_and_swap_every_pole(
    records: dict[str, list[PairedExample]],
) -> None:
    for kept in records.values():
        for first, second in twins_in(kept):
            assert first.axis == second.axis
            assert [o.text for o in first.options] == [o.text for o in second.options]
            assert all(a.side != b.side for a, b in zip(first.options, second.options, strict=True))
    for split in SPLITS:
        num_twins = sum(len(group) for group in twins_in(records[split]))
        assert num_twins == {"train_twins": 1008, "validation": 16, "twins": 128}.get(split, 0)


def test_no_scenario_and_no_option_text_is_in_two_splits(records: dict[str, list[PairedExample]]) -> None:
    for one, other in combinations(SPLITS, 2):
        for texts in (
            lambda record: {record.scenario},
            lambda record: {tuple(sorted(option.text for option in record.options))},
        ):
            seen = {text for record in records[one] for text in texts(record)}
            assert not seen & {text for record in records[other] for text in texts(record)}


@pytest.mark.parametrize("name", ["position", "bag_of_words", "condition_words"])
def test_on_twins_position_and_words_are_right_exactly_half_of_the_time(
    records: dict[str, list[PairedExample]], name: str
) -> None:
    outcomes = YARDSTICKS[name].outcomes(records["train"], records["twins"], "one", space=load_space("dilemmas"))
    for side in (0, 1):
        assert sum(METRICS["one"].code(outcome, side)[0] for outcome in outcomes) == len(outcomes) / 2
