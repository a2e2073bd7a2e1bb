"""What a data set gives away before any training: yardsticks, repeated texts, leaks between parts, balance."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from pft_core.data import PairedExample, PreferenceSpace
from pft_core.evaluation.metrics import METRICS
from pft_core.evaluation.yardsticks import YARDSTICKS
from pft_core.files import digest

Records = Sequence[PairedExample]


def check(parts: Mapping[str, Records], space: PreferenceSpace) -> dict[str, Any]:
    """Return for each part its axes and yardsticks, and the texts that two parts share.

    parts: records by the name of the part. Words are learned from the part `train`; without it, each half of a part is
    measured by the other half. Yardsticks are shares of right items, by axis: `one` (both poles averaged) and
    `both_right`.
    """
    choices = {name: [r for r in records if r.presentation == "choice"] for name, records in parts.items()}
    return {
        "parts": {
            name: {
                "records": len(records),
                "repeated_scenarios": repeated(record.scenario for record in records),
                "repeated_options": repeated(options_of(record) for record in records),
                "axes": {axis: balance(of_axis) for axis, of_axis in by_axis(records).items()},
                "yardsticks": yardsticks(choices, name, space) if choices[name] else {},
            }
            for name, records in parts.items()
        },
        "leaks": leaks(parts),
    }


def by_axis(records: Records) -> dict[str, list[PairedExample]]:
    groups: dict[str, list[PairedExample]] = {}
    for record in records:
        groups.setdefault(record.axis, []).append(record)
    return groups


def plain(text: str) -> str:
    """Return a text without differences of case and white space."""
    return " ".join(text.lower().split())


def options_of(record: PairedExample) -> str:
    return " | ".join(sorted(plain(option.text) for option in record.options))


def repeated(texts: Iterable[str]) -> int:
    """Return how many texts repeat an earlier one."""
    return sum(number - 1 for number in Counter(map(plain, texts)).values())


def balance(records: Records) -> dict[str, Any]:
    """Return the records of an axis, the share whose first shown option shows the first pole, and words per option.

    Records whose options are all longer for one pole can be solved by length.
    """
    words = [[len(o.text.split()) for r in records for o in r.options if o.side == side] for side in (0, 1)]
    return {
        "records": len(records),
        "first_option_shows_first_pole": sum(r.options[0].side == 0 for r in records) / len(records),
        "words_per_option": [sum(each) / len(each) for each in words],
        "options": dict(sorted(Counter(str(len(r.options)) for r in records).items())),
    }


def leaks(parts: Mapping[str, Records]) -> list[dict[str, Any]]:
    """Return for each two parts with a text in common the number of shared scenarios and of shared sets of options."""
    found = []
    for one, other in combinations(parts, 2):
        shared = {
            "scenarios": {plain(r.scenario) for r in parts[one]} & {plain(r.scenario) for r in parts[other]},
            "options": {options_of(r) for r in parts[one]} & {options_of(r) for r in parts[other]},
        }
        if any(shared.values()):
            found.append({"parts": [one, other], **{name: len(texts) for name, texts in shared.items()}})
    return found


def yardsticks(parts: Mapping[str, Records], name: str, space: PreferenceSpace) -> dict[str, Any]:
    """Return the scores of each yardstick on a part, by axis with two poles; None for too few records to learn from."""
    axes = {axis: records for axis, records in by_axis(parts[name]).items() if axis not in space.one_pole_axes}
    return {
        yardstick: {axis: scores(yardstick, parts, records, axis, space) for axis, records in axes.items()}
        for yardstick in YARDSTICKS
    }


def scores(
    yardstick: str, parts: Mapping[str, Records], records: Records, axis: str, space: PreferenceSpace
) -> dict[str, float] | None:
    entry = YARDSTICKS[yardstick]
    train = [record for record in parts.get("train", ()) if record.axis == axis]
    is_train = not train or train == list(records)
    folds = halves(records) if entry.reads_training and is_train else [(train, records)]
    if entry.reads_training and any(not learnable(kept) for kept, _ in folds):
        return None
    outcomes = [o for kept, asked in folds for o in entry.outcomes(kept, asked, "one", space=space) if asked]
    right = [[METRICS["one"].code(outcome, side)[0] for side in (0, 1)] for outcome in outcomes]
    return {
        "one": sum(map(sum, right)) / (2 * len(right)),
        "both_right": sum(first * second for first, second in right) / len(right),
    }


def halves(records: Records) -> list[tuple[Records, Records]]:
    """Return two folds by scenario and options, so that neither lies in both: (training, asked)."""
    first = [r for r in records if int(digest([options_of(r)])[:8], 16) % 2]
    second = [r for r in records if not int(digest([options_of(r)])[:8], 16) % 2]
    return [(first, second), (second, first)]


def learnable(records: Records) -> bool:
    return len({record.scenario for record in records}) >= 2
